"""A family of models that opens when a gate is."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.unit.server.gated_models import Gate, gated_models
from tests.unit.server.model_fixtures import write_repository

from likewise.server.models import OnnxModels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_repository(tmp_path / "repository")


@pytest.fixture
async def gate() -> Gate:
    return Gate()


@pytest.fixture
async def models(folder: Path, gate: Gate) -> AsyncIterator[OnnxModels]:
    async with gated_models(folder, gate) as made:
        yield made
