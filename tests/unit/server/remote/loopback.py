"""A shard in plain numpy and the loopback endpoints around it."""

import asyncio
import functools
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from tests.unit.server.waiting import until

from likewise.internal.v1 import shard_service_pb2_grpc
from likewise.server.remote.channels import Channels, Endpoint
from likewise.server.remote.shard_servicer import ShardServicer
from likewise.server.remote.shard_stub import ShardRoute, ShardStub, search_stream
from likewise.shards import layout
from likewise.shards.protocols import (
    F32,
    NOTHING,
    Delta,
    Rows,
    SearchOptions,
    ShardHits,
    UnknownAttribute,
)
from likewise.shards.spec import AttributeSpec, GallerySpec, SpaceSpec
from likewise.v1 import common_pb2, gallery_service_pb2, search_service_pb2

SPEC = GallerySpec(
    name="shoes",
    gallery_id="0" * 31 + "1",
    spaces=(SpaceSpec("default", 4, "vectors:4"),),
    attributes=(AttributeSpec("colour", common_pb2.ATTRIBUTE_TYPE_STRING),),
    shards=2,
)


def rows(ids: Sequence[str], vectors: F32, *, version: int = 1) -> pa.RecordBatch:
    """Rows in the store's schema; the colour is the id's first letter."""
    n = len(ids)
    columns = {
        "id": pa.array(ids, pa.string()),
        "content": pa.array(range(n), pa.int64()),
        "vector_default": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), 4),
        "norm_default": pa.array(np.full(n, 2.0), pa.float32()),
        "colour": pa.array([item_id[:1] for item_id in ids], pa.string()),
    }
    return layout.stamped(pa.table(columns, schema=layout.input_schema(SPEC)), SPEC, version)


class NumpyShard:
    """`ShardSearch` and `DeltaSink` by brute force; follows the contract where the tests look."""

    def __init__(self) -> None:
        self.version = 0
        self.rows: dict[str, tuple[F32, int, str]] = {}
        self.gate: asyncio.Event | None = None
        self.running = 0
        self.cancelled = 0
        self.applied: list[Delta] = []
        self.failure: Exception | None = None

    async def search(self, queries: F32, options: SearchOptions) -> ShardHits:
        await self._enter(options.attributes)
        ids: list[str] = []
        scores: list[float] = []
        offsets = [0]
        left_out = options.exclusions or (NOTHING,) * len(queries)
        for query, (names, digest) in zip(queries, left_out, strict=True):
            allowed = [i for i, (_, content, _) in self.rows.items() if i not in names and content != digest]
            scored = sorted((-float(query @ self.rows[i][0]), i) for i in allowed)[: options.k]
            ids += [item_id for _, item_id in scored]
            scores += [-score for score, _ in scored]
            offsets.append(len(ids))
        return ShardHits(
            ids=ids,
            scores=np.asarray(scores, np.float32),
            offsets=np.asarray(offsets, np.int64),
            attributes=self._attributes(ids, options.attributes) if options.attributes else None,
            vectors=self._vectors(ids) if options.vectors else None,
            plan=search_service_pb2.ShardPlan(shard=1, live=len(self.rows), allowed=len(self.rows)),
            version=self.version,
            queue_us=3,
            search_us=5,
            excluded=[
                sum(content == digest for _, content, _ in self.rows.values()) for _, digest in options.exclusions
            ],
        )

    async def fetch(
        self,
        ids: Sequence[str],
        *,
        space: str,
        attributes: Sequence[str] = (),
        vectors: bool = False,
        min_version: int = 0,
    ) -> Rows:
        await self._enter(attributes)
        return self._rows([item_id for item_id in ids if item_id in self.rows], attributes, vectors)

    async def page(
        self,
        *,
        after: str,
        limit: int,
        filter: bytes,
        space: str,
        attributes: Sequence[str] = (),
        vectors: bool = False,
        min_version: int = 0,
    ) -> Rows:
        await self._enter(attributes)
        found = sorted((i for i in self.rows if i.encode() > after.encode()), key=str.encode)
        return self._rows(found[:limit], attributes, vectors)

    async def count(self, filter: bytes, *, min_version: int = 0) -> tuple[int, int]:
        await self._enter(())
        return (len(self.rows) if not filter else 0), self.version

    async def stats(self) -> gallery_service_pb2.ShardStats:
        return gallery_service_pb2.ShardStats(shard=1, live=len(self.rows), version=self.version)

    async def apply(self, delta: Delta) -> None:
        if self.failure is not None:
            raise self.failure
        self.applied.append(delta)
        for item_id in delta.deleted_ids:
            self.rows.pop(item_id, None)
        columns = delta.upserts.to_pydict()
        for item_id, vector, content, colour in zip(
            columns["id"], columns["vector_default"], columns["content"], columns["colour"], strict=True
        ):
            self.rows[item_id] = (np.asarray(vector, np.float32), content, colour)
        self.version = delta.version

    async def _enter(self, attributes: Sequence[str]) -> None:
        if unknown := [name for name in attributes if name != "colour"]:
            raise UnknownAttribute("mask.attributes[0]", f"no attribute {unknown[0]!r}, the gallery has colour")
        if self.failure is not None:
            raise self.failure
        if self.gate is not None:
            self.running += 1
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            finally:
                self.running -= 1

    def _rows(self, ids: Sequence[str], attributes: Sequence[str], vectors: bool) -> Rows:
        return Rows(
            ids=ids,
            content=np.array([self.rows[i][1] for i in ids], dtype=np.int64),
            attributes=self._attributes(ids, attributes) if attributes else None,
            vectors=self._vectors(ids) if vectors else None,
            norms=np.full(len(ids), 2.0, np.float32) if vectors else None,
            version=self.version,
        )

    def _attributes(self, ids: Sequence[str], names: Sequence[str]) -> pa.RecordBatch:
        return pa.RecordBatch.from_pydict({name: pa.array([self.rows[i][2] for i in ids]) for name in names})

    def _vectors(self, ids: Sequence[str]) -> F32:
        return np.stack([self.rows[i][0] for i in ids]) if ids else np.empty((0, 4), np.float32)


class Loopback:
    """Endpoints and channels of one test."""

    def __init__(self) -> None:
        self.channels = Channels()
        self._endpoints: list[Endpoint] = []

    async def endpoint(self, register: Callable[[Endpoint], None]) -> str:
        """host:port of a new endpoint."""
        endpoint = Endpoint("127.0.0.1")
        register(endpoint)
        self._endpoints.append(endpoint)
        return await endpoint.start()

    async def shard_stub(self, shard: NumpyShard, *, number: int = 1, streamed: bool = False) -> ShardStub:
        """A stub of a shard behind an endpoint of its own, whose stream is open if there is to be one."""
        route = await self.shard_route(shard)
        if not streamed:
            return ShardStub(route, gallery_id=SPEC.gallery_id, shard=number)
        stream = search_stream(self.channels, route.addresses[0])
        await until(lambda: stream.ready)
        return ShardStub(route, gallery_id=SPEC.gallery_id, shard=number, stream=stream)

    async def shard_route(self, *shards: NumpyShard) -> ShardRoute:
        """A route to shard 1's replicas."""
        addresses = [await self.endpoint(functools.partial(_register, shard)) for shard in shards]
        return ShardRoute(
            "shard 1 of gallery 'shoes'",
            self.channels,
            shard_service_pb2_grpc.ShardServiceStub,
            addresses=addresses,
        )

    async def close(self) -> None:
        await self.channels.close()
        for endpoint in self._endpoints:
            await endpoint.stop(grace_s=0)


def _register(shard: NumpyShard, endpoint: Endpoint) -> None:
    servicer = ShardServicer(shard, shard, spec=SPEC, number=1)
    shard_service_pb2_grpc.add_ShardServiceServicer_to_server(servicer, endpoint.server)
