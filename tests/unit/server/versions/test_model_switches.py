"""Versions are switched to as a whole, and freed when the last query has ended."""

import asyncio
import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
from tests.unit.server.gated_models import RED, in_use, promote, session_of, state, text_of, wanted
from tests.unit.server.model_fixtures import colour_embedding, png, text_embedding
from tests.unit.server.version_fixtures import other_space, other_words, same_space
from tests.unit.server.waiting import until

from likewise.server.errors import FailedPrecondition, NotFound, Unavailable
from likewise.server.lineup import History, changed
from likewise.server.model_slot import ModelSlot
from likewise.server.models import OnnxModels, read_repositories
from likewise.server.session import Runtime
from likewise.v1 import model_service_pb2 as pb


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

    def freed() -> bool:
        gc.collect()
        return session() is None and encoder() is None

    await models.unload("tiny-text", 2)

    await until(freed)  # the thread of its last batch may be about to let go of it
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
