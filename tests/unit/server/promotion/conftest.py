"""A served family of models, with a gallery of its vectors."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.unit.server.model_fixtures import write_repository
from tests.unit.server.model_server import Shop, model_shop


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_repository(tmp_path / "repository")


@pytest.fixture
async def shop(folder: Path) -> AsyncIterator[Shop]:
    async with model_shop(folder) as made:
        await made.create()
        yield made
