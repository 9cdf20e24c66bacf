"""Versions are found and opened beside those in use, or refused with their reason."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.unit.server.gated_models import Gate, in_use, session_of, state, text_of
from tests.unit.server.model_fixtures import text_embedding
from tests.unit.server.version_fixtures import other_words, rewrite, same_space

from likewise.server.errors import FailedPrecondition, NotFound
from likewise.server.models import OnnxModels
from likewise.v1 import model_service_pb2 as pb


async def test_a_version_that_appeared_after_the_start_is_found_and_opened_beside_the_one_in_use(
    models: OnnxModels, folder: Path
) -> None:
    other_words(folder, 2)

    loaded = await models.load("tiny-text", 2)

    assert (loaded.version, loaded.state, loaded.in_use) == (2, pb.MODEL_STATE_READY, False)
    assert in_use(models) == {"tiny-composer": 1, "tiny-image": 1, "tiny-text": 1}
    assert [(m.version, m.state) for m in models.models() if m.name == "tiny-text"] == [
        (1, pb.MODEL_STATE_READY),
        (2, pb.MODEL_STATE_READY),
    ]
    np.testing.assert_allclose(await text_of(models.family("tiny"), "red"), text_embedding("red"), atol=1e-5)


async def test_without_a_version_the_newest_in_the_repository_is_loaded(models: OnnxModels, folder: Path) -> None:
    for version in (2, 10, 9):
        same_space(folder, version)
    (folder / "tiny-text" / "11").mkdir()  # still being copied: the manifest comes last

    assert (await models.load("tiny-text", None)).version == 10


async def test_loading_again_is_the_same_as_loading_once(models: OnnxModels, folder: Path, gate: Gate) -> None:
    same_space(folder, 2)

    first = await models.load("tiny-text", 2)
    session = session_of(models, "tiny-text", 2)
    again = await models.load("tiny-text", 2)

    assert first == again
    assert session() is session_of(models, "tiny-text", 2)()
    assert gate.opened.count("tiny-text/2") == 1


async def test_loads_of_one_version_at_the_same_time_share_one_attempt(
    models: OnnxModels, folder: Path, gate: Gate
) -> None:
    same_space(folder, 2)
    gate.free.clear()
    calls = [asyncio.create_task(models.load("tiny-text", 2)) for _ in range(5)]
    while await gate.begun.get() != "tiny-text/2":
        pass

    assert state(models, "tiny-text", 2) == "LOADING"
    calls[0].cancel()
    await asyncio.gather(calls[0], return_exceptions=True)
    gate.free.set()

    loaded = await asyncio.gather(*calls[1:])
    assert {model.state for model in loaded} == {pb.MODEL_STATE_READY}
    assert gate.opened.count("tiny-text/2") == 1


async def test_few_versions_are_opened_at_the_same_time(models: OnnxModels, folder: Path, gate: Gate) -> None:
    for version in range(2, 7):
        same_space(folder, version)
    gate.most = 0

    await asyncio.gather(*(models.load("tiny-image", version) for version in range(2, 7)))

    assert 1 <= gate.most <= 2


async def test_a_version_that_cannot_be_opened_fails_with_its_reason_and_disturbs_nothing(
    models: OnnxModels, folder: Path
) -> None:
    same_space(folder, 2)
    path = folder / "tiny-text" / "2" / "model.onnx"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"?")

    with pytest.raises(FailedPrecondition, match=r"tiny-text/2 cannot be served: model\.onnx has SHA-256") as caught:
        await models.load("tiny-text", 2)

    assert caught.value.reason == "MODEL_FAILED"
    assert str(folder) not in str(caught.value)
    assert state(models, "tiny-text", 2) == "FAILED"
    np.testing.assert_allclose(await text_of(models.family("tiny"), "red"), text_embedding("red"), atol=1e-5)

    path.write_bytes(whole)
    assert (await models.load("tiny-text", 2)).state == pb.MODEL_STATE_READY


async def test_a_mended_manifest_is_read_again(models: OnnxModels, folder: Path) -> None:
    same_space(folder, 2)
    image = folder / "tiny-composer" / "2"
    rewrite(image, condition_templates={})

    with pytest.raises(FailedPrecondition, match="no condition template"):
        await models.load("tiny-composer", 2)
    rewrite(image, condition_templates={"unspecified": "{}", "focus": "{}", "change": "now {}"})

    assert (await models.load("tiny-composer", 2)).state == pb.MODEL_STATE_READY


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "manifest.json").write_text("{"), "cannot be read as a manifest"),
        (lambda folder: rewrite(folder, version=3), "its manifest is that of tiny-text/3"),
        (lambda folder: rewrite(folder, family="other"), "a model keeps its kind and family"),
    ],
)
async def test_a_manifest_that_cannot_be_is_refused_without_the_machines_paths(
    models: OnnxModels, folder: Path, spoil: Callable[[Path], object], message: str
) -> None:
    same_space(folder, 2)
    spoil(folder / "tiny-text" / "2")

    with pytest.raises(FailedPrecondition, match=message) as caught:
        await models.load("tiny-text", 2)

    assert caught.value.reason == "MODEL_FAILED"
    assert str(folder) not in str(caught.value)


async def test_a_second_model_of_one_kind_is_refused(models: OnnxModels, folder: Path) -> None:
    shutil.copytree(folder / "tiny-text" / "1", folder / "tiny-words" / "1")
    rewrite(folder / "tiny-words" / "1", name="tiny-words")

    with pytest.raises(FailedPrecondition, match="has a model of kind text_encoder already, 'tiny-text'"):
        await models.load("tiny-words", 1)

    # It takes nobody's place: it is not known, and the right one can still be loaded.
    same_space(folder, 2)
    assert (await models.load("tiny-text", 2)).state == pb.MODEL_STATE_READY
    assert "tiny-words" not in {model.name for model in models.models()}


@pytest.mark.parametrize("name", ["clip", "..", "../repository/tiny-text", "tiny-text/1", "a" * 5000, "nul\0"])
async def test_a_model_that_is_not_there_is_not_found_and_no_name_leads_out_of_the_repository(
    models: OnnxModels, name: str
) -> None:
    with pytest.raises(NotFound, match=r"there are \['tiny-composer', 'tiny-image', 'tiny-text'\]"):
        await models.load(name, None)


async def test_a_version_that_is_not_there_is_not_found(models: OnnxModels) -> None:
    with pytest.raises(NotFound, match=r"'tiny-text' has no version 7 in the model repository, only \[1\]"):
        await models.load("tiny-text", 7)
