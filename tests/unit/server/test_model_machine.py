"""Loads, promotions, rollbacks and unloads in any order leave the models as a few lines of Python say they are."""

import asyncio
import tempfile
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.unit.server.fakes import FakeGalleries
from tests.unit.server.model_fixtures import DIM, text_embedding, write_repository
from tests.unit.server.model_server import Documents
from tests.unit.server.version_fixtures import other_space, other_words, space_of, wider

from likewise.server.batcher import BatchLimits
from likewise.server.errors import ServiceError
from likewise.server.images import ImageLimits
from likewise.server.models import OnnxModels, read_repositories
from likewise.server.promotion import Promotions
from likewise.server.promotion_record import DOCUMENT
from likewise.server.recent_queries import RecentQueries
from likewise.server.session import Runtime
from likewise.shards.spec import GallerySpec, SpaceSpec
from likewise.v1 import model_service_pb2 as pb

KINDS: Final = ("image", "text", "composer")
SPACES: Final = {1: "old", 2: "old", 3: "wider", 4: "other"}
"""The wider one declares itself compatible with the old one."""

Key = tuple[str, int]


class Simple:
    """What the models should be like.

    Attributes:
        current, previous, withdrawn: Version by kind.
        ready: What is open.
    """

    def __init__(self) -> None:
        self.current: Mapping[str, int] = dict.fromkeys(KINDS, 1)
        self.previous: Mapping[str, int] | None = None
        self.withdrawn: Mapping[str, int] | None = None
        self.ready: set[Key] = set(self.current.items())

    def load(self, key: Key) -> str:
        if key[1] not in SPACES:
            return "MODEL_NOT_FOUND"
        self.ready.add(key)
        return ""

    def unload(self, key: Key) -> str:
        if key[1] not in SPACES:
            return "MODEL_NOT_FOUND"
        if key in self.current.items():
            return "MODEL_IN_USE"
        self.ready.discard(key)
        return ""

    def promote(self, wanted: Mapping[str, int]) -> str:
        if not set(wanted.values()) <= SPACES.keys():
            return "MODEL_NOT_FOUND"
        new = {**self.current, **wanted}
        (old_space,), spaces = {SPACES[v] for v in self.current.values()}, {SPACES[v] for v in new.values()}
        if len(spaces) > 1 or ("other" in spaces | {old_space} and spaces != {old_space}):
            return "SPACE_MISMATCH"
        if new == self.current:
            return ""
        if not new.items() <= self.ready:
            return "MODEL_NOT_LOADED"
        self._switch(new, previous=self.current, withdrawn=None)
        return ""

    def rollback(self) -> str:
        if self.previous is None:
            return "NO_VERSION_BEFORE"
        self.ready |= set(self.previous.items())
        self._switch(self.previous, previous=None, withdrawn=self.current)
        return ""

    def _switch(
        self, new: Mapping[str, int], *, previous: Mapping[str, int] | None, withdrawn: Mapping[str, int] | None
    ) -> None:
        kept = self._kept()
        self.current, self.previous, self.withdrawn = new, previous, withdrawn
        self.ready -= kept - self._kept()

    def _kept(self) -> set[Key]:
        return {key for one in (self.current, self.previous, self.withdrawn) for key in (one or {}).items()}


kinds = st.sampled_from(KINDS)
numbers = st.integers(1, 5)


class ModelMachine(RuleBasedStateMachine):
    folder: Path

    @initialize()
    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.documents = Documents()
        self.simple = Simple()
        self.galleries = FakeGalleries()
        self.run(self._start())

    async def _start(self) -> None:
        space = SpaceSpec("default", DIM, space_of(self.folder / "tiny-image" / "1"), "tiny")
        await self.galleries.create(GallerySpec("g", "0" * 32, (space,)))
        await self.documents.write_document(
            DOCUMENT, {"format": 1, "families": {"tiny": {"current": {f"tiny-{kind}": 1 for kind in KINDS}}}}
        )
        self.models = OnnxModels(
            read_repositories([self.folder], builtin=False),
            runtime=Runtime(threads=1),
            batch=BatchLimits(max_batch=4, max_items=16),
            images=ImageLimits(),
            workers=1,
            documents=self.documents,
        )
        await self.models.open()
        self.promotions = Promotions(self.models, self.galleries, RecentQueries())

    def run(self, call: Coroutine[Any, Any, Any]) -> str:
        """The reason of a refusal, "" for none; what goes on in the background is finished."""

        async def finished() -> str:
            try:
                await call
                reason = ""
            except ServiceError as error:
                reason = error.reason
            if frees := getattr(self, "models", None) and list(self.models._versions._frees.values()):
                await asyncio.wait(frees)
            await asyncio.sleep(0)
            return reason

        return self.loop.run_until_complete(finished())

    @rule(kind=kinds, version=numbers)
    def load(self, kind: str, version: int) -> None:
        assert self.run(self.models.load(f"tiny-{kind}", version)) == self.simple.load((kind, version))

    @rule(version=st.integers(1, 4))
    def load_all(self, version: int) -> None:
        for kind in KINDS:
            self.load(kind, version)

    @rule(kind=kinds, version=numbers)
    def unload(self, kind: str, version: int) -> None:
        assert self.run(self.models.unload(f"tiny-{kind}", version)) == self.simple.unload((kind, version))

    @rule(wanted=st.dictionaries(kinds, numbers, min_size=1))
    def promote_some(self, wanted: dict[str, int]) -> None:
        named = {f"tiny-{kind}": version for kind, version in wanted.items()}
        assert self.run(self.promotions.promote(named)) == self.simple.promote(wanted)

    @rule(version=st.integers(1, 4))
    def promote_all(self, version: int) -> None:
        self.promote_some(dict.fromkeys(KINDS, version))

    @rule(kind=kinds, version=st.integers(1, 2))
    def take_one(self, kind: str, version: int) -> None:
        self.load(kind, version)
        self.promote_some({kind: version})

    @rule(version=st.integers(1, 3))
    def take_all(self, version: int) -> None:
        self.load_all(version)
        self.promote_all(version)

    @rule(kind=kinds)
    def rollback(self, kind: str) -> None:
        assert self.run(self.promotions.rollback(f"tiny-{kind}")) == self.simple.rollback()

    @invariant()
    def told_as_it_is(self) -> None:
        if not hasattr(self, "simple"):
            return
        told = {(m.name.removeprefix("tiny-"), m.version): m for m in self.models.models()}
        assert {key for key, model in told.items() if model.state == pb.MODEL_STATE_READY} == self.simple.ready
        assert {key for key, model in told.items() if model.in_use} == set(self.simple.current.items())
        kept = set((self.simple.previous or {}).items()) - set(self.simple.current.items())
        assert {key for key, model in told.items() if model.previous} == kept

    @invariant()
    def served_as_told(self) -> None:
        if not hasattr(self, "simple"):
            return
        family = self.models.family("tiny")
        assert family.image is not None
        assert family.text is not None
        assert family.composer is not None
        members = {"image": family.image.model, "text": family.text.model, "composer": family.composer.model}
        assert {kind: model.version for kind, model in members.items()} == self.simple.current
        assert {model.space for model in members.values()} == {family.space}
        (vector,) = self.loop.run_until_complete(family.text.encode(["red"])).vectors
        as_first = np.allclose(vector[:DIM], text_embedding("red"), atol=1e-5)
        assert as_first == (self.simple.current["text"] != 2)

    @invariant()
    def on_record(self) -> None:
        if not hasattr(self, "simple"):
            return
        written = self.documents.content[DOCUMENT]["families"]["tiny"]
        expected = {
            "current": self.simple.current,
            "previous": self.simple.previous,
            "withdrawn": self.simple.withdrawn,
        }
        assert written == {
            name: {f"tiny-{kind}": version for kind, version in versions.items()}
            for name, versions in expected.items()
            if versions is not None
        }

    def teardown(self) -> None:
        if hasattr(self, "models"):
            self.loop.run_until_complete(self.models.close())
            self.loop.close()


def test_any_order_of_changes_leaves_the_models_as_told() -> None:
    with tempfile.TemporaryDirectory() as folder:
        ModelMachine.folder = write_repository(Path(folder) / "repository")
        other_words(ModelMachine.folder, 2)
        wider(ModelMachine.folder, 3)
        other_space(ModelMachine.folder, 4)
        case = ModelMachine.TestCase
        case.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
        case().runTest()
