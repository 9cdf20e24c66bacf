"""The writer of a gallery that takes no writes."""

from collections.abc import Sequence
from typing import NoReturn

import pyarrow as pa

from likewise.server.errors import FailedPrecondition
from likewise.shards.gallery_store import GalleryStore
from likewise.shards.partition_counts import PartitionCounts
from likewise.shards.protocols import DeltaSink, Stage, StreamPosition, WriteResult
from likewise.shards.spec import GallerySpec
from likewise.v1 import common_pb2


class ReadOnlyWriter:
    """A `protocols.Writer` and `BulkWriter` that says no; it commits nothing to the store, not even maintenance.

    Args:
        gallery: Whose rows never change, so that followers have nothing to follow.
    """

    def __init__(self, gallery: GalleryStore) -> None:
        self._gallery = gallery
        self._counts = PartitionCounts(gallery)

    async def start(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    def add_sink(self, sink: DeltaSink) -> None:
        """Nothing will come."""
        del sink

    async def remove_sink(self, sink: DeltaSink) -> None:
        """Nothing came."""
        del sink

    async def version(self) -> int:
        """The store version, for good."""
        return self._gallery.version

    async def live_rows(self, shard: int, shards: int) -> int:
        """See `protocols.Writer.live_rows`."""
        return await self._counts.rows(self._gallery.version, shard, shards)

    async def upsert(
        self, rows: pa.RecordBatch, *, request_id: str = "", position: StreamPosition | None = None
    ) -> WriteResult:
        """Refuse; see `protocols.Writer.upsert`."""
        del rows, request_id, position
        self._refuse()

    async def stage(self, rows: int) -> Stage:
        """Refuse; see `protocols.BulkWriter.stage`."""
        del rows
        self._refuse()

    async def commit_fragments(self, fragments: Sequence[str], *, request_id: str) -> WriteResult:
        """Refuse; see `protocols.BulkWriter.commit_fragments`."""
        del fragments, request_id
        self._refuse()

    async def stream_progress(self, stream_id: str) -> int:
        """Refuse: no stream comes anywhere."""
        del stream_id
        self._refuse()

    async def delete(
        self, *, ids: Sequence[str] = (), filter: common_pb2.Filter | None = None, request_id: str = ""
    ) -> WriteResult:
        """Refuse; see `protocols.Writer.delete`."""
        del ids, filter, request_id
        self._refuse()

    async def update_spec(self, spec: GallerySpec) -> int:
        """Refuse; see `GalleryWriter.update_spec`."""
        del spec
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise refusal(self._gallery.spec.name)


def refusal(name: str) -> FailedPrecondition:
    """What whoever would change a read-only gallery is told."""
    return FailedPrecondition(
        f"gallery {name!r} is read-only: write to another one, or restore its snapshot once more without read_only",
        reason="GALLERY_READ_ONLY",
        metadata={"gallery": name},
    )
