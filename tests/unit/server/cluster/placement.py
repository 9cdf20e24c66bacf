"""A cluster in memory: parts that come and go when told to, and a store's catalogue."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from tests.unit.server.fakes import FakeShard

from likewise.export.manifest import Kind, Manifest
from likewise.internal.v1 import controller_service_pb2 as pb
from likewise.server.cluster.model_messages import described, model_route
from likewise.server.cluster.parts import EncoderPart, Part, PlacedPart, Serving
from likewise.server.errors import AlreadyExists
from likewise.shards.copying import Report
from likewise.shards.protocols import F32, ShardSearch
from likewise.shards.snapshots import Snapshot
from likewise.shards.spec import GallerySpec, SpaceSpec
from likewise.v1 import gallery_service_pb2, model_service_pb2

SPEC = GallerySpec(name="shoes", gallery_id="", spaces=(SpaceSpec("default", 4, "vectors:4"),), shards=2)


def manifest(
    kind: Kind = "image_encoder", version: int = 1, *, family: str = "shapes", space: str = "sha256:1"
) -> Manifest:
    """A model version by its name alone: fakes open nothing."""
    return Manifest(
        name=f"{family}-{kind.removesuffix('_encoder')}",
        version=version,
        kind=kind,
        family=family,
        dim=4,
        space=space,
        inputs=(),
        outputs=(),
        files={"model.onnx": "0" * 64},
        condition_templates={"unspecified": "{}", "focus": "the same {}", "change": "but {}"},
    )


MODEL = manifest()


class FakePart:
    """A part that is lost when told so, and comes up at another port each time."""

    ports = iter(range(10_000, 60_000))

    def __init__(self, part: Part, placement: "FakePlacement") -> None:
        self.part = part
        self.followed: list[list[list[str]]] = []
        self.beside: list[list[list[list[str]]]] = []
        self.specs: list[GallerySpec] = []
        self.stopped: list[bool] = []
        self.models: dict[tuple[str, int], pb.ModelRoute] = {}
        self._placement = placement
        self._lost = asyncio.Event()

    async def start(self) -> Serving:
        if self.part.name in self._placement.broken:
            raise RuntimeError("no memory")
        self._lost = asyncio.Event()
        return Serving(f"127.0.0.1:{next(self.ports)}", tuple(self.models.values()))

    async def wait_lost(self) -> None:
        await self._lost.wait()

    async def follow(self, *generations: Sequence[Sequence[str]]) -> None:
        self.followed.append([list(replicas) for replicas in generations[0]])
        self.beside.append([[list(replicas) for replicas in shards] for shards in generations[1:]])

    async def update(self, spec: GallerySpec) -> None:
        if self.part.name in self._placement.refusing:
            raise RuntimeError("no space left")
        self.specs.append(spec)

    async def load(self, name: str, version: int) -> pb.ModelRoute:
        assert isinstance(self.part, EncoderPart)
        await self._placement.gate.wait()
        reason = self._placement.damaged.get((name, version), "")
        state = model_service_pb2.MODEL_STATE_FAILED if reason else model_service_pb2.MODEL_STATE_READY
        kind: Kind = "composer" if name.endswith("composer") else f"{name.rpartition('-')[2]}_encoder"  # type: ignore[assignment]
        space = self._placement.spaces.get((name, version), "sha256:1")
        of = manifest(kind, version, family=self.part.family, space=space)
        model = described(of, state)
        model.reason, model.provider = reason, "" if reason else "Fake"
        route = self.models[name, version] = model_route(of, model)
        return route

    async def unload(self, name: str, version: int) -> None:
        self.models.pop((name, version), None)

    async def stop(self, *, grace_s: float, discard: bool) -> None:
        self.stopped.append(discard)
        self._placement.parts.pop(self.part.name, None)

    def lose(self) -> None:
        """The process ends, and with it what it had open."""
        self.models.clear()
        self._lost.set()


class FakePlacement:
    """`Placement` that outlives a controller, as a cluster does."""

    def __init__(self) -> None:
        self.parts: dict[str, FakePart] = {}
        self.broken: set[str] = set()
        self.refusing: set[str] = set()
        self.lacking: set[int] = set()
        self.damaged: dict[tuple[str, int], str] = {}
        self.spaces: dict[tuple[str, int], str] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.checking = asyncio.Event()
        self.checking.set()

    async def place(self, part: Part) -> PlacedPart:
        return self.parts.setdefault(part.name, FakePart(part, self))

    async def prune(self, wanted: Collection[str]) -> None:
        for name in self.parts.keys() - set(wanted):
            del self.parts[name]

    @asynccontextmanager
    async def connect(self, spec: GallerySpec, addresses: Sequence[str]) -> AsyncIterator[Sequence[ShardSearch]]:
        """`Connect`: every shard holds one row, but those numbers in `lacking`."""
        row = {"content": 0, "vector": [1.0, 0.0, 0.0, 0.0], "norm": 1.0}
        await self.checking.wait()
        yield [
            FakeShard(spec, number, rows={} if number in self.lacking else {f"item-{number}": row})
            for number in range(len(addresses))
        ]

    def of(self, kind: type[Part]) -> list[FakePart]:
        return [part for _, part in sorted(self.parts.items()) if isinstance(part.part, kind)]


class FakeCatalogue:
    """`Catalogue` in memory."""

    def __init__(self) -> None:
        self.galleries: dict[str, GallerySpec] = {}
        self.documents: dict[str, Any] = {}
        self.closed = False

    def read_document(self, name: str) -> Any:
        return self.documents.get(name)

    def write_document(self, name: str, value: Any) -> None:
        self.documents[name] = value

    def specs(self) -> Sequence[GallerySpec]:
        return list(self.galleries.values())

    def create(self, spec: GallerySpec) -> None:
        if spec.name in self.galleries:
            raise AlreadyExists(f"the gallery {spec.name!r} exists already")
        self.galleries[spec.name] = spec

    def delete(self, name: str) -> None:
        del self.galleries[name]

    def spec(self, name: str) -> GallerySpec:
        return self.galleries[name]

    def version(self, name: str) -> int:
        return 3

    def read_only(self, name: str) -> bool:
        return False

    def snapshots(self, gallery: str) -> Sequence[Snapshot]:
        raise NotImplementedError("snapshots are made of a store")

    def create_snapshot(self, gallery: str, name: str, *, version: int | None, note: str) -> Snapshot:
        raise NotImplementedError("snapshots are made of a store")

    def delete_snapshot(self, gallery: str, name: str) -> None:
        raise NotImplementedError("snapshots are made of a store")

    def restore(self, gallery: str, snapshot: str, name: str, *, read_only: bool) -> GallerySpec:
        raise NotImplementedError("snapshots are made of a store")

    def exporting(self, gallery: str, snapshot: str, folder: str) -> Callable[[Report], gallery_service_pb2.Export]:
        raise NotImplementedError("exports are made of a store")

    def importing(self, folder: str, name: str, *, read_only: bool) -> Callable[[Report], GallerySpec]:
        raise NotImplementedError("imports are put into a store")

    def rows(self, name: str, version: int, shard: int, shards: int) -> int:
        return 1

    def sample(self, name: str, space: str, count: int) -> F32:
        return np.eye(4, dtype=np.float32)

    def close(self) -> None:
        self.closed = True
