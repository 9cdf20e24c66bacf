"""Versions are opened beside those in use, switched to as a whole, and freed when the last query has ended."""

import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.server.model_fixtures import colour_embedding, png, text_embedding, write_repository
from tests.unit.server.version_fixtures import other_space, other_words, rewrite, same_space

from likewise.export.model_repository import Model
from likewise.server.batcher import BatchLimits
from likewise.server.errors import FailedPrecondition, NotFound, Unavailable
from likewise.server.graphs import OpenGraph, open_graph
from likewise.server.images import ImageLimits
from likewise.server.lineup import History, Lineup, changed
from likewise.server.model_slot import ModelSlot
from likewise.server.models import OnnxModels, read_repositories
from likewise.server.protocols import Family
from likewise.server.session import Runtime
from likewise.v1 import model_service_pb2 as pb

RED = (255, 0, 0)


class Gate:
    """Opens graphs, and can hold an opening up."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()
        self.opened: list[str] = []
        self.together = 0
        self.most = 0
        self.lock = threading.Lock()

    def __call__(self, model: Model, runtime: Runtime) -> OpenGraph:
        name = f"{model.manifest.name}/{model.manifest.version}"
        with self.lock:
            self.together += 1
            self.most = max(self.most, self.together)
        self.loop.call_soon_threadsafe(self.begun.put_nowait, name)
        assert self.free.wait(30)
        with self.lock:
            self.together -= 1
            self.opened.append(name)
        return open_graph(model, runtime)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_repository(tmp_path / "repository")


@pytest.fixture
async def gate() -> Gate:
    return Gate()


@pytest.fixture
async def models(folder: Path, gate: Gate) -> AsyncIterator[OnnxModels]:
    made = OnnxModels(
        read_repositories([folder], builtin=False),
        runtime=Runtime(threads=1),
        batch=BatchLimits(max_batch=8, max_items=64),
        images=ImageLimits(),
        workers=2,
        open_graph=gate,
    )
    await made.open()
    yield made
    gate.free.set()
    await made.close()


def state(models: OnnxModels, name: str, version: int) -> str:
    (found,) = (model for model in models.models() if (model.name, model.version) == (name, version))
    return pb.ModelState.Name(found.state).removeprefix("MODEL_STATE_")


def session_of(models: OnnxModels, name: str, version: int) -> "weakref.ref[Any]":
    opened = models._versions.slot((name, version))._opened
    assert opened is not None
    return weakref.ref(opened.graph)


def in_use(models: OnnxModels) -> dict[str, int]:
    return {model.name: model.version for model in models.models() if model.in_use}


def wanted(models: OnnxModels, **versions: int) -> Lineup:
    history = models.history("tiny")
    assert history is not None
    return changed("tiny", history.current, [models.manifest(f"tiny-{kind}", v) for kind, v in versions.items()])


async def promote(models: OnnxModels, **versions: int) -> None:
    history = models.history("tiny")
    assert history is not None
    lineup = wanted(models, **versions)
    await models.switch(History(lineup, previous=history.current), expected=history.current.versions)


async def text_of(family: Family, text: str) -> Any:
    assert family.text is not None
    return (await family.text.encode([text])).vectors[0]


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


async def test_a_switch_changes_what_new_queries_get_and_a_family_taken_before_stays_as_it_was(
    models: OnnxModels, folder: Path
) -> None:
    other_words(folder, 2)
    await models.load("tiny-text", 2)
    before = models.family("tiny")

    await promote(models, text=2)

    after = models.family("tiny")
    assert after is not before
    assert (before.text.model.version, after.text.model.version) == (1, 2)  # type: ignore[union-attr]
    assert before.image is after.image
    assert not np.allclose(await text_of(after, "red"), text_embedding("red"))
    np.testing.assert_allclose(await text_of(before, "red"), text_embedding("red"), atol=1e-5)
    assert in_use(models) == {"tiny-composer": 1, "tiny-image": 1, "tiny-text": 2}
    assert [(m.name, m.version) for m in models.models() if m.previous] == [("tiny-text", 1)]


async def test_a_switch_to_what_is_not_ready_is_refused(models: OnnxModels, folder: Path) -> None:
    same_space(folder, 2)
    await models.load("tiny-text", 2)
    lineup = wanted(models, text=2)
    await models.unload("tiny-text", 2)

    for attempt in (lambda: models.candidate(lineup), None):
        with pytest.raises(FailedPrecondition, match="tiny-text/2 is AVAILABLE, not READY: load it first") as caught:
            attempt() if attempt else await promote(models, text=2)
        assert caught.value.reason == "MODEL_NOT_LOADED"
    assert in_use(models)["tiny-text"] == 1


async def test_a_switch_from_what_is_no_longer_in_use_is_refused(models: OnnxModels, folder: Path) -> None:
    for version in (2, 3):
        same_space(folder, version)
        await models.load("tiny-text", version)
    stale = wanted(models, text=3)
    await promote(models, text=2)

    with pytest.raises(FailedPrecondition, match="were changed meanwhile") as caught:
        await models.switch(History(stale), expected={"tiny-composer": 1, "tiny-image": 1, "tiny-text": 1})

    assert caught.value.reason == "MODELS_CHANGED"
    assert in_use(models)["tiny-text"] == 2


async def test_an_unloaded_version_gives_its_memory_back(models: OnnxModels, folder: Path) -> None:
    same_space(folder, 2)
    await models.load("tiny-text", 2)
    with models.serving("tiny-text", 2) as served:
        await served.encoder.encode(["red"])  # type: ignore[union-attr,list-item]  # it is the text encoder
        encoder = weakref.ref(served.encoder)
    del served
    session = session_of(models, "tiny-text", 2)

    await models.unload("tiny-text", 2)
    gc.collect()

    assert session() is None
    assert encoder() is None
    assert state(models, "tiny-text", 2) == "AVAILABLE"
    await models.unload("tiny-text", 2)  # once more does nothing
    assert (await models.load("tiny-text", 2)).state == pb.MODEL_STATE_READY


async def test_a_version_in_use_is_not_unloaded(models: OnnxModels) -> None:
    with pytest.raises(FailedPrecondition, match="tiny-text/1 is in use by 'tiny'") as caught:
        await models.unload("tiny-text", 1)

    assert caught.value.reason == "MODEL_IN_USE"
    with pytest.raises(NotFound, match=r"'tiny-text' has no version 4 here, only \[1\]"):
        await models.unload("tiny-text", 4)
    with pytest.raises(NotFound, match="no model 'clip'"):
        await models.unload("clip", 1)


async def test_unloading_waits_for_the_queries_that_use_the_version(models: OnnxModels, folder: Path) -> None:
    same_space(folder, 2)
    await models.load("tiny-text", 2)
    await promote(models, text=2)
    await promote(models, text=1)
    old = models.candidate(wanted(models, text=2))

    with old.lease():
        unloading = asyncio.create_task(models.unload("tiny-text", 2))
        await asyncio.sleep(0)
        assert state(models, "tiny-text", 2) == "DRAINING"
        with pytest.raises(FailedPrecondition, match="is DRAINING, not READY"):
            models.candidate(wanted(models, text=2))
        np.testing.assert_allclose(await text_of(old, "red"), text_embedding("red"), atol=1e-5)
        assert not unloading.done()
        loading = asyncio.create_task(models.load("tiny-text", 2))
    await unloading

    assert (await loading).state == pb.MODEL_STATE_READY
    with pytest.raises(Unavailable):
        await text_of(old, "red")


async def test_an_unloading_goes_on_when_its_caller_goes_away(models: OnnxModels, folder: Path) -> None:
    same_space(folder, 2)
    await models.load("tiny-text", 2)
    session = session_of(models, "tiny-text", 2)
    with models.candidate(wanted(models, text=2)).lease():
        unloading = asyncio.create_task(models.unload("tiny-text", 2))
        await asyncio.sleep(0)
        unloading.cancel()
        await asyncio.gather(unloading, return_exceptions=True)

    await models.unload("tiny-text", 2)
    gc.collect()

    assert session() is None


async def test_a_promotion_frees_what_was_kept_before_the_last_one(models: OnnxModels, folder: Path) -> None:
    for version in (2, 3):
        same_space(folder, version)
        await models.load("tiny-text", version)
    first = session_of(models, "tiny-text", 1)

    await promote(models, text=2)
    assert state(models, "tiny-text", 1) == "READY"
    await promote(models, text=3)
    await models.unload("tiny-text", 1)  # joins what the promotion began
    gc.collect()

    assert first() is None
    assert [state(models, "tiny-text", version) for version in (1, 2, 3)] == ["AVAILABLE", "READY", "READY"]
    assert state(models, "tiny-image", 1) == "READY"


async def test_a_new_family_can_be_brought_in_while_the_server_runs(models: OnnxModels, folder: Path) -> None:
    other_space(folder, 1, family="next")
    for kind in ("image", "text", "composer"):
        await models.load(f"next-{kind}", 1)
    with pytest.raises(NotFound, match="'next'"):
        models.family("next")

    lineup = changed("next", None, [models.manifest(f"next-{kind}", 1) for kind in ("image", "text", "composer")])
    await models.switch(History(lineup), expected=None)

    family = models.family("next")
    assert family.image is not None
    assert family.space != models.family("tiny").space
    (vector,) = (await family.image.encode([png(RED)])).vectors
    np.testing.assert_allclose(vector, colour_embedding(RED)[::-1], atol=1e-5)


async def test_a_model_is_called_by_version_and_by_default_in_the_one_in_use(models: OnnxModels, folder: Path) -> None:
    other_words(folder, 2)
    same_space(folder, 3)
    await models.load("tiny-text", 2)

    with models.serving("tiny-text", None) as default, models.serving("tiny-text", 2) as second:
        assert (default.model.version, second.model.version) == (1, 2)
        assert second.graph is not None
        ids = np.full((3, 6), 2, np.int32)
        rows = (await second.graph.infer({"tokens": ids}))["embedding"]
        assert rows.shape == (3, 8)
    await models.load("tiny-composer", 3)
    await models.unload("tiny-composer", 3)
    with (
        pytest.raises(FailedPrecondition, match="tiny-composer/3 is not loaded"),
        models.serving("tiny-composer", 3),
    ):
        pass
    with pytest.raises(NotFound, match="no version 9"), models.serving("tiny-text", 9):
        pass


async def test_a_slot_that_was_closed_is_never_opened_again(folder: Path) -> None:
    (repository,) = read_repositories([folder], builtin=False)
    slot = ModelSlot(repository.latest("tiny-text"), Runtime())
    slot.open()

    slot.close()

    with pytest.raises(Unavailable, match="tiny-text/1 was unloaded"):
        slot.open()
