"""Galleries, shards, writers and models in memory: small, exact, and able to fail on demand."""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from likewise.server.app import Server, ServerOptions
from likewise.server.errors import AlreadyExists, InvalidRequest, NotFound
from likewise.server.protocols import Encoded, Family, GalleryHandle
from likewise.shards.attributes import align, table_schema
from likewise.shards.filter import compile_filter, filter_key
from likewise.shards.protocols import F32, NOTHING, Rows, SearchOptions, ShardHits, StreamPosition, WriteResult
from likewise.shards.spec import GallerySpec, shard_hash
from likewise.v1 import common_pb2, gallery_service_pb2, model_service_pb2
from likewise.v1 import search_service_pb2 as pb

DIM = 8
SPACE = "sha256:fake"


@dataclass(eq=False)
class FakeShard:
    """One partition as Python rows, searched exactly.

    Attributes:
        failure: Raised by every call while set.
        gate: Searches wait for it while set.
        batches: Number of queries of each search call so far.
        cancelled: Searches that were cancelled.
    """

    spec: GallerySpec
    number: int
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    version: int = 1
    failure: Exception | None = None
    gate: asyncio.Event | None = None
    batches: list[int] = field(default_factory=list)
    options: list[SearchOptions] = field(default_factory=list)
    cancelled: int = 0

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _allowed(self, filter: bytes) -> list[str]:
        ids = sorted(self.rows)
        predicate = compile_filter(filter, self.spec.attributes)
        if predicate is None or not ids:
            return ids
        mask = predicate.mask(self._table(ids))
        return [item_id for item_id, ok in zip(ids, mask, strict=True) if ok]

    def _table(self, ids: Sequence[str]) -> pa.Table:
        rows = [{k: v for k, v in self.rows[i].items() if k not in ("vector", "norm", "id")} for i in ids]
        names = ["content", *(attribute.name for attribute in self.spec.attributes)]
        batch = pa.table({name: [row.get(name) for row in rows] for name in names}, schema=None)
        return align(batch, table_schema(self.spec.attributes))

    def _vectors(self, ids: Sequence[str]) -> F32:
        dim = self.spec.space().dim
        return np.array([self.rows[i]["vector"] for i in ids], dtype=np.float32).reshape(len(ids), dim)

    async def search(self, queries: F32, options: SearchOptions) -> ShardHits:
        self.batches.append(len(queries))
        self.options.append(options)
        self._check()
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        allowed = self._allowed(options.filter)
        excluded: list[int] = []
        found: list[str] = []
        scores: list[float] = []
        offsets = [0]
        for query, (names, digest) in zip(queries, options.exclusions or (NOTHING,) * len(queries), strict=True):
            others = [i for i in allowed if i not in names]
            ids = [i for i in others if digest is None or self.rows[i]["content"] != digest]
            excluded.append(len(others) - len(ids))
            similarity = self._vectors(ids) @ query
            order = [j for _, _, j in sorted((-score, ids[j], j) for j, score in enumerate(similarity.tolist()))][
                : options.k
            ]
            found += [ids[j] for j in order]
            scores += [float(similarity[j]) for j in order]
            offsets.append(len(found))
        attributes = None
        if options.attributes:
            attributes = self._table(found).select(list(options.attributes)).combine_chunks()
            attributes = (
                attributes.to_batches()[0] if found else pa.RecordBatch.from_pylist([], schema=attributes.schema)
            )
        kind = pb.PLAN_KIND_EXACT_FILTERED if options.filter else pb.PLAN_KIND_EXACT
        plan = pb.ShardPlan(
            shard=self.number, kind=kind, live=len(self.rows), allowed=len(allowed), compared=len(allowed)
        )
        return ShardHits(
            ids=found,
            scores=np.array(scores, dtype=np.float32),
            offsets=np.array(offsets),
            attributes=attributes,
            vectors=self._vectors(found) if options.vectors else None,
            plan=plan,
            version=self.version,
            queue_us=1,
            search_us=2,
            excluded=excluded if options.exclusions else (),
        )

    def _rows(self, ids: Sequence[str], attributes: Sequence[str], vectors: bool) -> Rows:
        table = self._table(ids)
        columns = {name: table[name].combine_chunks() for name in attributes}
        flat = [c.chunk(0) if isinstance(c, pa.ChunkedArray) and c.num_chunks else _flat(c) for c in columns.values()]
        return Rows(
            ids=ids,
            content=np.array([self.rows[i]["content"] for i in ids], dtype=np.int64),
            attributes=pa.RecordBatch.from_arrays(flat, names=list(columns)) if columns else None,
            vectors=self._vectors(ids) if vectors else None,
            norms=np.array([self.rows[i]["norm"] for i in ids], dtype=np.float32) if vectors else None,
            version=self.version,
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
        self._check()
        return self._rows([i for i in ids if i in self.rows], attributes, vectors)

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
        self._check()
        return self._rows([i for i in self._allowed(filter) if i > after][:limit], attributes, vectors)

    async def count(self, filter: bytes, *, min_version: int = 0) -> tuple[int, int]:
        self._check()
        return len(self._allowed(filter)), self.version

    async def stats(self) -> gallery_service_pb2.ShardStats:
        self._check()
        return gallery_service_pb2.ShardStats(
            shard=self.number,
            live=len(self.rows),
            version=self.version,
            state=gallery_service_pb2.INDEX_STATE_READY,
        )


def _flat(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column if isinstance(column, pa.Array) else pa.array([], column.type)


@dataclass(eq=False)
class FakeWriter:
    """Commits at once to the shards it is given.

    Attributes:
        failure: Raised instead of committing while set.
        log: Ids of each commit.
        positions: Places in streams of each upsert.
        settled: What it says of a stream's progress.
        back_off_s: What it tells everybody.
    """

    shards: tuple[FakeShard, ...]
    committed: int = 1
    failure: BaseException | None = None
    log: list[list[str]] = field(default_factory=list)
    positions: list[StreamPosition | None] = field(default_factory=list)
    settled: dict[str, int] = field(default_factory=dict)
    back_off_s: float = 0.0
    gate: asyncio.Event | None = None

    async def upsert(
        self, rows: pa.RecordBatch, *, request_id: str = "", position: StreamPosition | None = None
    ) -> WriteResult:
        if self.failure is not None:
            raise self.failure
        self.positions.append(position)
        space = self.shards[0].spec.space().name
        written = set()
        for row in rows.to_pylist():
            shard = self.shards[shard_hash(row["id"]) % len(self.shards)]
            vector, norm = row.pop(f"vector_{space}"), row.pop(f"norm_{space}")
            shard.rows[row["id"]] = {**row, "vector": vector, "norm": norm}
            written.add(row["id"])
        self.log.append(rows.column("id").to_pylist())
        return self._commit(len(written))

    async def delete(
        self, *, ids: Sequence[str] = (), filter: common_pb2.Filter | None = None, request_id: str = ""
    ) -> WriteResult:
        gone = 0
        for shard in self.shards:
            chosen = set(ids) if filter is None else set(shard._allowed(filter_key(filter)))
            for item_id in chosen & shard.rows.keys():
                del shard.rows[item_id]
                gone += 1
        return self._commit(gone)

    def _commit(self, rows: int) -> WriteResult:
        self.committed += 1
        for shard in self.shards:
            shard.version = self.committed
        return WriteResult(rows=rows, version=self.committed, back_off_s=self.back_off_s)

    async def stream_progress(self, stream_id: str) -> int:
        return self.settled.get(stream_id, 0)

    async def version(self) -> int:
        await self._answering()
        return self.committed

    async def live_rows(self, shard: int, shards: int) -> int:
        await self._answering()
        assert shards == len(self.shards)
        return len(self.shards[shard].rows)

    async def _answering(self) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure


class FakeGalleries:
    """Galleries in memory."""

    def __init__(self) -> None:
        self.all: dict[str, GalleryHandle] = {}

    def get(self, name: str) -> GalleryHandle:
        if name not in self.all:
            raise NotFound(f"no gallery {name!r}", reason="GALLERY_NOT_FOUND")
        return self.all[name]

    def handles(self) -> Sequence[GalleryHandle]:
        return [self.all[name] for name in sorted(self.all)]

    async def create(self, spec: GallerySpec) -> GalleryHandle:
        if spec.name in self.all:
            raise AlreadyExists(f"gallery {spec.name!r} exists")
        shards = tuple(FakeShard(spec, i) for i in range(spec.shards))
        handle = self.all[spec.name] = GalleryHandle(spec, shards, FakeWriter(shards))
        return handle

    async def update(self, spec: GallerySpec, *, min_recall: float | None = None) -> GalleryHandle:
        rows = [row for shard in self.shards(spec.name) for row in shard.rows.items()]
        shards = tuple(FakeShard(spec, i) for i in range(spec.shards))
        for item_id, row in rows:
            shards[shard_hash(item_id) % len(shards)].rows[item_id] = row
        handle = self.all[spec.name] = GalleryHandle(spec, shards, FakeWriter(shards))
        return handle

    async def delete(self, name: str) -> None:
        del self.all[name]

    def shards(self, name: str) -> tuple[FakeShard, ...]:
        """The shards of a gallery, to prepare and to look into."""
        shards = self.all[name].shards
        assert all(isinstance(shard, FakeShard) for shard in shards)
        return shards  # type: ignore[return-value]

    def writer(self, name: str) -> FakeWriter:
        """The writer of a gallery."""
        writer = self.all[name].writer
        assert isinstance(writer, FakeWriter)
        return writer


def embedding(data: bytes) -> F32:
    """A vector of length 3 that depends on nothing but the bytes."""
    seed = int.from_bytes(hashlib.sha256(data).digest()[:8], "little")
    vector = np.random.default_rng(seed).normal(size=DIM)
    scaled: F32 = (3 * vector / np.linalg.norm(vector)).astype(np.float32)
    return scaled


class FakeEncoder:
    """Bytes or texts to `embedding`; refuses what contains b"bad"."""

    def __init__(self, kind: str) -> None:
        self.model = common_pb2.ModelRef(name=f"fake-{kind}", version=1, kind=kind, space=SPACE)

    async def encode(self, inputs: Sequence[bytes] | Sequence[str]) -> Encoded:
        data = [item.encode() if isinstance(item, str) else item for item in inputs]
        for i, item in enumerate(data):
            if b"bad" in item:
                raise InvalidRequest(
                    "the image is no JPEG, PNG or WebP file", reason="IMAGE_UNDECODABLE", field=f"[{i}]"
                )
        return Encoded(np.stack([embedding(item) for item in data]), decode_us=5, encode_us=7)


class FakeComposer:
    """The sum of both directions."""

    model = common_pb2.ModelRef(name="fake-composer", version=1, kind="composer", space=SPACE)

    def condition_text(self, text: str, mode: int) -> str:
        return text

    async def compose(self, references: F32, conditions: F32) -> F32:
        total = references + conditions
        unit: F32 = (total / np.linalg.norm(total, axis=1, keepdims=True)).astype(np.float32)
        return unit


class FakeModels:
    """One family, "fake"."""

    def __init__(self) -> None:
        self.space = SPACE

    def family(self, name: str) -> Family:
        if name != "fake":
            raise NotFound(f"no models {name!r}, there are ['fake']", reason="MODEL_NOT_FOUND")
        return Family(
            "fake", self.space, DIM, FakeEncoder("image_encoder"), FakeEncoder("text_encoder"), FakeComposer()
        )

    def models(self) -> Sequence[model_service_pb2.Model]:
        return [model_service_pb2.Model(name="fake-image_encoder", version=1, family="fake", dim=DIM)]


OPTIONS = ServerOptions(port=0, drain_grace_s=5.0)


def fake_server(galleries: FakeGalleries, **options: object) -> Server:
    """A server over fakes on a free port."""
    return Server(replace(OPTIONS, **options), models=FakeModels(), galleries=galleries)  # type: ignore[arg-type]


def details(error: aio.AioRpcError) -> status_pb2.Status:
    """The google.rpc.Status of a failed call."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return status_pb2.Status.FromString(value)
    raise AssertionError(f"{error.code()} carries no details: {error.details()}")


def info(error: aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    """The ErrorInfo of a failed call."""
    return _detail(error, error_details_pb2.ErrorInfo())


def field_of(error: aio.AioRpcError) -> str:
    """The field a failed call names."""
    return str(_detail(error, error_details_pb2.BadRequest()).field_violations[0].field)


def retry_s(error: aio.AioRpcError) -> float:
    """When a failed call says to come back, seconds."""
    return float(_detail(error, error_details_pb2.RetryInfo()).retry_delay.ToNanoseconds() / 1e9)


def _detail(error: aio.AioRpcError, message: Any) -> Any:
    for packed in details(error).details:
        if packed.Is(message.DESCRIPTOR):
            packed.Unpack(message)
            return message
    raise AssertionError(f"no {message.DESCRIPTOR.name} in {error.details()}")
