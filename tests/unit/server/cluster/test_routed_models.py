"""A router changes the models of a cluster: real encoders behind real channels, with everything but Ray between."""

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.server.cluster.placement import FakeCatalogue
from tests.unit.server.fakes import FakeGalleries
from tests.unit.server.model_fixtures import DIM, png, text_embedding, write_repository
from tests.unit.server.remote.loopback import Loopback
from tests.unit.server.version_fixtures import other_space, other_words, same_space, wider
from tests.unit.server.waiting import until

from likewise.internal.v1 import controller_service_pb2_grpc as pb_grpc
from likewise.server.cluster import hosts
from likewise.server.cluster.controller import Controller
from likewise.server.cluster.controller_servicer import ControllerServicer
from likewise.server.cluster.hosts import EncoderHost, HostOptions
from likewise.server.cluster.parts import EncoderPart, Part, PlacedPart, Serving
from likewise.server.cluster.router import Routing
from likewise.server.compose import compose_query
from likewise.server.errors import FailedPrecondition, NotFound, ServiceError
from likewise.server.galleries import StoreOptions
from likewise.server.model_folders import read_repositories
from likewise.server.promotion import Promotions
from likewise.server.protocols import Family
from likewise.server.query import ConditionInput, ImageReference
from likewise.server.recent_queries import RecentQueries
from likewise.v1 import model_service_pb2, search_service_pb2

RED = (255, 0, 0)
ALL_1 = {"tiny-composer": 1, "tiny-image": 1, "tiny-text": 1}
ALL_2 = dict.fromkeys(ALL_1, 2)


class HostedPart:
    """A host in this process."""

    def __init__(self, host: EncoderHost) -> None:
        self.host = host
        self.start = host.start
        self.load = host.load
        self.unload = host.unload
        self.lost = asyncio.Event()

    async def wait_lost(self) -> None:
        await self.lost.wait()

    async def follow(self, *generations: Sequence[Sequence[str]]) -> None: ...

    async def update(self, spec: Any) -> None: ...

    async def stop(self, *, grace_s: float, discard: bool) -> None:
        await self.host.stop(grace_s=0, discard=discard)


class HostPlacement:
    """`Placement` of real encoder hosts."""

    def __init__(self, options: HostOptions) -> None:
        self._options = options
        self.parts: dict[str, HostedPart] = {}

    async def place(self, part: Part) -> PlacedPart:
        assert isinstance(part, EncoderPart)
        return self.parts.setdefault(part.name, HostedPart(EncoderHost(part, self._options)))

    async def prune(self, wanted: Collection[str]) -> None: ...


@dataclass
class Cluster:
    folder: Path
    catalogue: FakeCatalogue
    controller: Controller
    routing: Routing
    other: Routing
    promotions: Promotions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_repository(tmp_path / "repository")


@asynccontextmanager
async def running(folder: Path, loopback: Loopback, catalogue: FakeCatalogue, replicas: int) -> AsyncIterator[Cluster]:
    options = HostOptions(StoreOptions("unused"), models=(folder,), listen="127.0.0.1")
    (repository,) = read_repositories([folder], builtin=False)
    controller = Controller(
        catalogue,
        HostPlacement(options),
        models=[model.manifest for model in repository.models],
        folders=[folder],
        replicas=replicas,
    )
    await controller.start()
    servicer = ControllerServicer(controller)
    address = await loopback.endpoint(
        lambda endpoint: pb_grpc.add_ControllerServiceServicer_to_server(servicer, endpoint.server)
    )

    async def resolve() -> str:
        return address

    routing, other = Routing(resolve), Routing(resolve)
    await routing.start(timeout_s=30)
    await other.start(timeout_s=30)
    promotions = Promotions(routing.models, FakeGalleries(), RecentQueries())
    yield Cluster(folder, catalogue, controller, routing, other, promotions)
    await routing.close()
    await other.close()
    await controller.close(stop_parts=True)


@pytest.fixture
async def cluster(folder: Path, loopback: Loopback, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setattr(hosts, "QUIET_S", 0.0)
    async with running(folder, loopback, FakeCatalogue(), 2) as made:
        yield made


def versions(family: Family) -> dict[str, int]:
    members = [one for one in (family.image, family.text, family.composer) if one is not None]
    return {one.model.name: one.model.version for one in members}


def told(routing: Routing, name: str, version: int) -> Any:
    return next(model for model in routing.models.models() if (model.name, model.version) == (name, version))


async def load_all(cluster: Cluster, version: int, family: str = "tiny") -> None:
    for kind in ("image", "text", "composer"):
        await cluster.routing.models.load(f"{family}-{kind}", version)


async def text_of(family: Family, text: str = "red") -> Any:
    assert family.text is not None
    return (await family.text.encode([text])).vectors[0]


async def test_a_family_is_joined_from_the_versions_in_use(cluster: Cluster) -> None:
    family = cluster.routing.models.family("tiny")

    assert versions(family) == ALL_1
    assert family.dim == DIM
    assert family.composer is not None
    assert family.composer.condition_text("red", search_service_pb2.CONDITION_MODE_CHANGE) == "another red"
    np.testing.assert_allclose(await text_of(family), text_embedding("red"), atol=1e-5)
    with pytest.raises(NotFound, match="no models of the name 'clip'; there are: tiny"):
        cluster.routing.models.family("clip")


async def test_a_promotion_reaches_every_router_and_a_family_taken_before_stays_as_it_was(cluster: Cluster) -> None:
    other_words(cluster.folder, 2)
    await cluster.routing.models.load("tiny-text", None)
    before = cluster.routing.models.family("tiny")

    await cluster.promotions.promote({"tiny-text": 2})

    after = cluster.routing.models.family("tiny")
    assert versions(after) == ALL_1 | {"tiny-text": 2}
    await until(lambda: versions(cluster.other.models.family("tiny")) == versions(after))
    np.testing.assert_allclose(await text_of(before), text_embedding("red"), atol=1e-5)
    assert not np.allclose(await text_of(after), text_embedding("red"))
    assert (told(cluster.routing, "tiny-text", 2).in_use, told(cluster.routing, "tiny-text", 1).previous) == (
        True,
        True,
    )


async def test_a_family_stays_the_same_one_until_its_versions_change(cluster: Cluster) -> None:
    same_space(cluster.folder, 2)
    before = cluster.other.models.family("tiny")

    await load_all(cluster, 2)
    await until(lambda: told(cluster.other, "tiny-text", 2).state == model_service_pb2.MODEL_STATE_READY)
    assert cluster.other.models.family("tiny") is before

    await cluster.promotions.promote(ALL_2)
    await until(lambda: versions(cluster.other.models.family("tiny")) == ALL_2)
    after = cluster.other.models.family("tiny")
    assert (after.image is not before.image, after.text is not before.text) == (True, True)


async def test_rollback_and_unload_work_through_any_router(cluster: Cluster) -> None:
    same_space(cluster.folder, 2)
    await load_all(cluster, 2)
    await cluster.promotions.promote(ALL_2)
    await until(lambda: versions(cluster.other.models.family("tiny")) == ALL_2)
    there = Promotions(cluster.other.models, FakeGalleries(), RecentQueries())

    await there.rollback("tiny-text")
    await cluster.other.models.unload("tiny-text", 2)

    assert versions(cluster.other.models.family("tiny")) == ALL_1
    await until(lambda: told(cluster.other, "tiny-text", 2).state == model_service_pb2.MODEL_STATE_AVAILABLE)
    with pytest.raises(FailedPrecondition, match="tiny-text/2 is AVAILABLE, not READY") as caught:
        await there.promote(ALL_2)
    assert caught.value.reason == "MODEL_NOT_LOADED"
    with pytest.raises(FailedPrecondition) as caught:
        await there.rollback("tiny-text")
    assert caught.value.reason == "NO_VERSION_BEFORE"


async def test_refusals_of_encoders_and_controller_come_with_their_reasons(cluster: Cluster) -> None:
    other_space(cluster.folder, 2)
    same_space(cluster.folder, 3)
    (cluster.folder / "tiny-text" / "3" / "model.onnx").write_bytes(b"?")
    await load_all(cluster, 2)

    for call, reason in (
        (cluster.promotions.promote({"tiny-image": 2}), "SPACE_MISMATCH"),
        (cluster.promotions.promote(ALL_2), "SPACE_MISMATCH"),
        (cluster.routing.models.load("tiny-text", 3), "MODEL_FAILED"),
        (cluster.routing.models.load("tiny-text", 9), "MODEL_NOT_FOUND"),
        (cluster.routing.models.load("../tiny-text", None), "MODEL_NOT_FOUND"),
        (cluster.routing.models.unload("tiny-text", 1), "MODEL_IN_USE"),
        (cluster.promotions.promote({"tiny-text": 9}), "MODEL_NOT_FOUND"),
    ):
        with pytest.raises(ServiceError) as caught:
            await call
        assert caught.value.reason == reason
    assert "SHA-256" in told(cluster.routing, "tiny-text", 3).reason
    assert versions(cluster.routing.models.family("tiny")) == ALL_1


async def test_a_promotion_that_another_router_overtook_is_refused(cluster: Cluster) -> None:
    for version in (2, 3):
        same_space(cluster.folder, version)
        await cluster.routing.models.load("tiny-text", version)
    history = cluster.routing.models.history("tiny")
    assert history is not None
    await cluster.promotions.promote({"tiny-text": 2})

    with pytest.raises(FailedPrecondition, match="were changed meanwhile") as caught:
        await cluster.routing.models.switch(history, expected=ALL_1)

    assert caught.value.reason == "MODELS_CHANGED"


async def test_compatible_spaces_are_told_to_routers(cluster: Cluster) -> None:
    wider(cluster.folder, 2)
    await load_all(cluster, 2)
    old = cluster.routing.models.family("tiny").space

    await cluster.promotions.promote(ALL_2)

    family = cluster.routing.models.family("tiny")
    assert (family.dim, dict(family.compatible_with)) == (DIM + 4, {old: DIM})


async def test_a_restarted_cluster_serves_what_was_promoted(
    folder: Path, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "QUIET_S", 0.0)
    catalogue = FakeCatalogue()
    async with running(folder, loopback, catalogue, 1) as cluster:
        same_space(folder, 2)
        await load_all(cluster, 2)
        await cluster.promotions.promote(ALL_2)
    same_space(folder, 3)
    catalogue.documents = json.loads(json.dumps(catalogue.documents))

    async with running(folder, loopback, catalogue, 1) as cluster:
        assert versions(cluster.routing.models.family("tiny")) == ALL_2
        await cluster.promotions.rollback("tiny-image")
        assert versions(cluster.routing.models.family("tiny")) == ALL_1


async def test_under_load_no_query_is_lost_or_mixed_while_versions_are_switched_and_freed(cluster: Cluster) -> None:
    other_words(cluster.folder, 2)
    same_space(cluster.folder, 3)
    seen: list[int] = []
    stop = asyncio.Event()

    async def caller(routing: Routing) -> None:
        expected: dict[int, Any] = {}
        while not stop.is_set():
            family = routing.models.family("tiny")
            query = await compose_query(
                family, DIM, reference=ImageReference(png(RED)), conditions=[ConditionInput("dog")]
            )
            (version,) = {model.version for model in query.models}
            assert len({model.space for model in query.models}) == 1
            np.testing.assert_allclose(query.vector, expected.setdefault(version, query.vector), atol=1e-5)
            seen.append(version)

    callers = [asyncio.create_task(caller(routing)) for routing in (cluster.routing, cluster.other) * 2]
    swaps = [2, 3, 1, 2, 3]
    for version in swaps:
        await load_all(cluster, version)
        await cluster.promotions.promote(dict.fromkeys(ALL_1, version))
        already = len(seen)
        while len(seen) < already + 8:
            await asyncio.sleep(0)
            for task in callers:
                if task.done():
                    task.result()
    stop.set()
    await asyncio.gather(*callers)

    assert set(seen) == {1, 2, 3}


async def test_an_encoder_waits_for_silence_before_it_frees_a_version(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same_space(folder, 2)
    host = EncoderHost(
        EncoderPart("tiny", 0), HostOptions(StoreOptions("unused"), models=(folder,), listen="127.0.0.1")
    )
    assert (await host.start()).models == ()
    await host.load("tiny-text", 1)
    await host.load("tiny-text", 2)
    assert [(one.model.name, one.model.version) for one in (await host.start()).models] == [
        ("tiny-text", 1),
        ("tiny-text", 2),
    ]
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        monkeypatch.setattr(hosts, "QUIET_S", 0.0)

    monkeypatch.setattr(hosts, "QUIET_S", 30.0)
    monkeypatch.setattr("likewise.server.cluster.hosts.asyncio.sleep", sleep)
    await host.unload("tiny-text", 1)  # nobody ever called it
    assert slept == []
    assert host._models is not None
    with host._models.serving("tiny-text", 2):
        unloading = asyncio.create_task(host.unload("tiny-text", 2))
        while not slept:
            await asyncio.wait([unloading], timeout=0.001)
    await unloading

    assert slept == [30.0]
    assert (await host.start()) == Serving((await host.start()).address)
    await host.stop(grace_s=0, discard=False)
