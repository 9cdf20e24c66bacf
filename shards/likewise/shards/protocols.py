"""The seams of the data plane: what a shard and a writer are, whether they live in this process or behind a channel.

`likewise.shards` implements them in process, `likewise.server` over gRPC; the same tests run on both. All methods are
coroutines, may be called concurrently, and are safe to cancel; none blocks the event loop.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from likewise.v1 import common_pb2, gallery_service_pb2, search_service_pb2

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


class ShardError(Exception):
    """Base of what a shard or a writer may answer besides a result."""


class UnknownAttribute(ShardError):
    """A filter or a result names an attribute that the gallery does not have, or compares it with a wrong type.

    Attributes:
        field: Path of the offending field below the filter, for example "filter.all_of[1].comparison.value".
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class Overloaded(ShardError):
    """A bounded queue is full; nothing was done. `retry_after_s` is when to come back."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(ShardError):
    """The part is loading, draining, restarting or gone; nothing was done."""


class StoreFailure(ShardError):
    """The store refused a commit (disk full, permission, conflict); nothing was acknowledged."""


class FragmentsUnusable(ShardError):
    """Files of rows that cannot be committed; nothing was. `committed`: because one is part of the gallery already."""

    def __init__(self, message: str, *, committed: bool = False) -> None:
        super().__init__(message)
        self.committed = committed


class Exclusion(NamedTuple):
    """What is left out of the answer to one query.

    Attributes:
        ids: Ids never to be hits.
        content: Content digest never to be a hit (the exact copies of a reference), None for none.
    """

    ids: tuple[str, ...] = ()
    content: int | None = None


NOTHING: Final = Exclusion()


class SearchOptions(NamedTuple):
    """What all queries of one call share; hashable, so that equal calls can run as one batch.

    A named tuple, as the other values that every search makes or looks itself up by: making or hashing a frozen
    dataclass takes two to three times as long.

    Attributes:
        space: Space to search.
        k: Hits a query, at least 1.
        filter: Serialised `likewise.v1.Filter` (deterministic), or b"" for none.
        exact: Compare with every live row; None leaves it to the planner.
        ef: HNSW candidate list, None for the gallery's default.
        nprobe: IVF lists visited, None for the gallery's default.
        over_fetch: Candidates re-scored as a multiple of k, None for the planner's choice.
        target_recall: Recall@k to expect; the shard chooses how hard to look. Not together with the four before.
        exclusions: What is left out, one for each query; empty where nothing is.
        attributes: Names to bring with the hits.
        vectors: Bring the unit vectors.
        min_version: Oldest store version to answer from; the shard waits and catches up if it is behind.
    """

    space: str
    k: int
    filter: bytes = b""
    exact: bool | None = None
    ef: int | None = None
    nprobe: int | None = None
    over_fetch: float | None = None
    target_recall: float | None = None
    exclusions: tuple[Exclusion, ...] = ()
    attributes: tuple[str, ...] = ()
    vectors: bool = False
    min_version: int = 0


class ShardHits(NamedTuple):
    """Hits of n queries as columns.

    Attributes:
        ids: All queries' hits, one query after the other, each (score descending, id ascending).
        scores: (hits,) float32 inner products of unit vectors, computed row by row so that they do not
            depend on batch or shard.
        offsets: (n + 1,) int64; query i has hits offsets[i] to offsets[i + 1].
        attributes: One row a hit, the columns asked for; None when none were.
        vectors: (hits, dim) float32; None when not asked for.
        plan: How the shard looked.
        version: Store version it answered from.
        queue_us: Wait for the batch to start, microseconds.
        search_us: The batch itself, microseconds.
        excluded: (n,) live rows (after the filter) left out for the content of each query's exclusion; empty where
            nothing is left out.
    """

    ids: Sequence[str]
    scores: F32
    offsets: I64
    attributes: pa.RecordBatch | None
    vectors: F32 | None
    plan: search_service_pb2.ShardPlan
    version: int
    queue_us: int = 0
    search_us: int = 0
    excluded: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Rows:
    """Stored rows; plain columns for what every row has, as a search looks up one row and Arrow takes long to begin.

    Attributes:
        ids: Their ids.
        content: (rows,) int64 digests of their content.
        attributes: The attributes asked for; None when none were.
        vectors: (rows, dim) float32 unit vectors; None when not asked for.
        norms: (rows,) float32 raw norms, with the vectors.
        version: Store version they were read from.
    """

    ids: Sequence[str]
    content: I64
    attributes: pa.RecordBatch | None
    vectors: F32 | None
    norms: F32 | None
    version: int

    @property
    def batch(self) -> pa.RecordBatch:
        """Columns id (string), content (int64) and the attributes."""
        names = [] if self.attributes is None else self.attributes.schema.names
        columns = [] if self.attributes is None else self.attributes.columns
        own = [pa.array(self.ids, pa.string()), pa.array(self.content, pa.int64())]
        return pa.RecordBatch.from_arrays([*own, *columns], names=["id", "content", *names])


class ShardSearch(Protocol):
    """One shard of one gallery."""

    async def search(self, queries: F32, options: SearchOptions) -> ShardHits:
        """The best `options.k` rows for each of the (n, dim) unit queries; fewer only if fewer are allowed.

        Raises:
            UnknownAttribute: If the filter or the result mask does not fit the schema.
            Overloaded: If the shard's queue is full.
            Unavailable: If the shard is not serving.
        """
        ...

    async def fetch(
        self,
        ids: Sequence[str],
        *,
        space: str,
        attributes: Sequence[str] = (),
        vectors: bool = False,
        min_version: int = 0,
    ) -> Rows:
        """The rows of those of `ids` that the shard holds, in the order given."""
        ...

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
        """Up to `limit` matching rows with id > `after` (UTF-8 byte order), id ascending."""
        ...

    async def count(self, filter: bytes, *, min_version: int = 0) -> tuple[int, int]:
        """(live rows that match, store version)."""
        ...

    async def stats(self) -> gallery_service_pb2.ShardStats:
        """Counts and state."""
        ...


@dataclass(frozen=True, slots=True)
class Delta:
    """A committed change of a gallery.

    Attributes:
        base_version: Store version it starts from.
        version: Store version it leads to.
        upserts: New and replacing rows in the store's schema; each id once.
        deleted_ids: Ids gone, none of them in `upserts`.
    """

    base_version: int
    version: int
    upserts: pa.RecordBatch
    deleted_ids: Sequence[str]


class DeltaSink(Protocol):
    """Whoever follows a gallery's commits."""

    async def apply(self, delta: Delta) -> None:
        """Take a committed change; a sink that sees a gap catches up from the store by itself."""
        ...


@dataclass(frozen=True, slots=True)
class WriteResult:
    """A committed write.

    Attributes:
        rows: Distinct ids written or deleted.
        version: Store version from which that is visible.
        back_off_s: More than half of what may wait is waiting: seconds after which that is done; else 0.
    """

    rows: int
    version: int
    back_off_s: float = 0.0


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """Where in a stream of upserts a write stands.

    Attributes:
        stream_id: The caller's name of the stream, unique.
        sequence: Number of the message, from 1 and without gaps.
        settled: Every message up to this one is committed, or refused with the caller's knowledge.
    """

    stream_id: str
    sequence: int
    settled: int


class Writer(Protocol):
    """The one writer of a gallery."""

    async def upsert(
        self, rows: pa.RecordBatch, *, request_id: str = "", position: StreamPosition | None = None
    ) -> WriteResult:
        """Commit rows and return after the commit.

        Args:
            rows: Columns id (string, valid, an id twice: the last wins), content (int64), for each space vector_<space>
                (fixed-size list of float32, unit length, finite) and norm_<space> (float32), and the schema's
                attributes; the writer adds shard_hash and stamp.
            request_id: A retry with the same one returns the first result: that of the last 10,000 writes while the
                writer lives, of the newest commits' when it was restarted.
            position: Place in a stream; counts instead of the request id, for the same purpose.

        Raises:
            Overloaded: If the queue is full by rows or bytes.
            StoreFailure: If the commit failed; nothing is stored.
            Unavailable: If the writer drains.
        """
        ...

    async def delete(
        self, *, ids: Sequence[str] = (), filter: common_pb2.Filter | None = None, request_id: str = ""
    ) -> WriteResult:
        """Delete by id, or everything a filter matches in the newest version, and return after the commit."""
        ...

    async def stream_progress(self, stream_id: str) -> int:
        """Sequence up to which every message of a stream is settled, see `StreamPosition`; 0 if it is not known."""
        ...

    async def version(self) -> int:
        """The newest committed store version."""
        ...

    async def live_rows(self, shard: int, shards: int) -> int:
        """Rows of one of `shards` partitions in that version, by the store: also of a shard that does not answer."""
        ...


@dataclass(frozen=True, slots=True)
class Stage:
    """Where rows may be written beside a writer.

    Attributes:
        uri: The gallery's dataset.
        first_stamps: Of blocks of `bulk.BLOCK_STAMPS` stamps that nobody else uses.
    """

    uri: str
    first_stamps: Sequence[int]


class BulkWriter(Protocol):
    """A writer that takes rows which others have written into the gallery's folder; see `bulk`."""

    async def stage(self, rows: int) -> Stage:
        """Lend stamps for so many rows."""
        ...

    async def commit_fragments(self, fragments: Sequence[str], *, request_id: str) -> WriteResult:
        """Commit files of rows as one version, all or nothing; ids that are there are replaced.

        Args:
            fragments: As `bulk.write` gave them; of an id in several rows the last one stays.
            request_id: As for `Writer.upsert`.

        Raises:
            FragmentsUnusable: If a file cannot be used; nothing is stored.
            StoreFailure: If the commit failed; nothing is stored.
            Unavailable: If the writer drains.
        """
        ...


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened to one partition between two store versions.

    Attributes:
        version: The store version they lead to.
        upserts: Inserted and updated rows of the partition, in the store's schema.
        deleted_ids: Ids that are gone.
    """

    version: int
    upserts: pa.RecordBatch
    deleted_ids: Sequence[str]


class HistoryGone(ShardError):
    """The store no longer has the versions between; the partition has to be loaded anew."""


class PartitionSource(Protocol):
    """One partition of a gallery's store. Blocking: call it from an executor."""

    def version(self) -> int:
        """The newest committed store version."""
        ...

    def load(self, version: int, *, held: I64 | None = None) -> Iterator[pa.RecordBatch]:
        """All rows of the partition at a version, in the store's schema, in batches.

        Args:
            version: Of the store.
            held: Stamps, ascending, of the rows whose vectors the reader has already: those may come in batches of
                their own that lack the vectors' columns.
        """
        ...

    def changes(self, since: int, until: int) -> Changes:
        """What happened after `since`, up to and with `until`.

        Raises:
            HistoryGone: If `since` has been cleaned up.
        """
        ...
