"""The one writer of a gallery: many callers, one commit at a time.

Group commit without a timer: whatever waits when a commit ends forms the next one. An idle writer thus commits at once,
and a busy one shares each commit's cost (some ms) among all who wait. All blocking work runs on one thread, so commits,
deletes by filter, changes of the description and compaction never meet each other.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import pyarrow as pa

from likewise.shards.answers import Answers, Mark
from likewise.shards.columns import check_input
from likewise.shards.committer import Committer, Match, Write
from likewise.shards.delivery import Delivery
from likewise.shards.gallery_store import Commit, GalleryStore
from likewise.shards.group import Delete, Upsert
from likewise.shards.maintenance import MaintenancePolicy
from likewise.shards.partition_counts import PartitionCounts
from likewise.shards.protocols import (
    Delta,
    DeltaSink,
    Stage,
    StoreFailure,
    StreamPosition,
    Unavailable,
    WriteResult,
)
from likewise.shards.spec import GallerySpec
from likewise.shards.write_queue import WriteQueue, WriteRequest, WriterLimits
from likewise.v1 import common_pb2

T = TypeVar("T")

_log = logging.getLogger(__name__)


class GalleryWriter:
    """A `protocols.Writer` over a `GalleryStore` that it takes over when it starts."""

    def __init__(
        self,
        gallery: GalleryStore,
        match: Match,
        *,
        limits: WriterLimits | None = None,
        policy: MaintenancePolicy | None = None,
    ) -> None:
        """A writer that is not started yet; `match` evaluates the filter of a delete."""
        self._committer = Committer(gallery, match, policy or MaintenancePolicy())
        self._limits = limits or WriterLimits()
        self._policy = policy or MaintenancePolicy()
        self._queue = WriteQueue(self._limits)
        self._answers = Answers(self._limits.results)
        self._wake = asyncio.Event()
        self._bulk = asyncio.Lock()
        self._delivery = Delivery()
        self._counts = PartitionCounts(gallery)
        self._commit_thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._clean_thread = ThreadPoolExecutor(1, thread_name_prefix="clean-up")
        self._task: asyncio.Task[None] | None = None
        self._cleaning: asyncio.Future[None] | None = None
        self._closing = False
        self._version = gallery.version
        self._maintained_at = -1
        self._cleaned_version = gallery.version
        self._cleaned_s = time.monotonic()
        self._busy_commits = 0

    @property
    def spec(self) -> GallerySpec:
        """The gallery's description."""
        return self._committer.spec

    async def start(self) -> None:
        """Read which ids exist and begin to commit.

        Raises:
            StoreFailure: If the store cannot be read.
        """
        kept = await asyncio.get_running_loop().run_in_executor(self._commit_thread, self._committer.prepare)
        self._answers.read_back(kept)
        self._version = self._cleaned_version = self._committer.version
        self._task = asyncio.create_task(self._run(), name=f"writer-{self.spec.name}")

    async def close(self) -> None:
        """Refuse new writes, commit what waits, hand it to the followers, stop."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
            with suppress(TimeoutError):
                await asyncio.wait_for(self._delivery.drained(), self._limits.drain_s)
        if self._cleaning is not None:
            await asyncio.gather(self._cleaning, return_exceptions=True)
        await self._delivery.close()
        self._commit_thread.shutdown()
        self._clean_thread.shutdown()

    def add_sink(self, sink: DeltaSink) -> None:
        """Push every commit from now on to `sink`, in order, as a whole: see `layout.partition_delta`."""
        self._delivery.add(sink)

    async def remove_sink(self, sink: DeltaSink) -> None:
        """Push nothing more to `sink`."""
        await self._delivery.remove(sink)

    async def version(self) -> int:
        """The newest committed store version."""
        return self._version

    async def live_rows(self, shard: int, shards: int) -> int:
        """See `protocols.Writer.live_rows`."""
        return await self._counts.rows(self._version, shard, shards)

    async def upsert(
        self, rows: pa.RecordBatch, *, request_id: str = "", position: StreamPosition | None = None
    ) -> WriteResult:
        """Commit rows; see `protocols.Writer.upsert`.

        Raises:
            ColumnError: If the rows are not in `layout.input_schema`, or a vector is not finite.
        """
        check_input(self.spec, rows)
        mark = Mark(request_id, position)
        return await self._submit(Upsert(rows), rows=rows.num_rows, size=rows.nbytes, mark=mark)

    async def stream_progress(self, stream_id: str) -> int:
        """See `protocols.Writer.stream_progress`."""
        return self._answers.settled(stream_id)

    async def delete(
        self, *, ids: Sequence[str] = (), filter: common_pb2.Filter | None = None, request_id: str = ""
    ) -> WriteResult:
        """Delete by id or by filter; see `protocols.Writer.delete`.

        Returns:
            How many items were there and are gone.

        Raises:
            ValueError: If both ids and a filter are given.
            UnknownAttribute: If the filter does not fit the schema.
        """
        if filter is not None and ids:
            raise ValueError(f"delete takes ids or a filter, got both ({len(ids)} ids)")
        if filter is not None:
            copy = common_pb2.Filter()
            copy.CopyFrom(filter)
            return await self._submit(copy, rows=1, size=copy.ByteSize(), mark=Mark(request_id))
        size = sum(map(len, ids))
        return await self._submit(Delete(tuple(ids)), rows=len(ids), size=size, mark=Mark(request_id))

    async def stage(self, rows: int) -> Stage:
        """See `protocols.BulkWriter.stage`."""
        self._refuse_if_closing()

        def lend() -> tuple[list[int], Commit]:
            return self._committer.lend_stamps(rows)

        return Stage(self._committer.uri, await asyncio.shield(asyncio.create_task(self._committed(lend))))

    async def commit_fragments(self, fragments: Sequence[str], *, request_id: str) -> WriteResult:
        """See `protocols.BulkWriter.commit_fragments`."""
        self._refuse_if_closing()
        mark = Mark(request_id)

        async def commit() -> WriteResult:
            async with self._bulk:  # so that a repetition finds the answer of the one under way
                if (known := self._answers.find(mark, version=self._version)) is not None:
                    return known
                rows = await self._committed(lambda: self._committer.commit_fragments(fragments, mark))
                result = WriteResult(rows, self._version)
                self._answers.add(mark, result)
                return result

        return await asyncio.shield(asyncio.create_task(commit()))

    async def update_spec(self, spec: GallerySpec) -> int:
        """Store a changed description and return the version that has it; see `GalleryStore.update_spec`."""
        self._refuse_if_closing()
        work = asyncio.create_task(self._on_commit_thread(lambda: self._committer.update_spec(spec)))
        # Once begun it is committed, and then the followers have to hear of it, whether or not the caller still waits.
        return (await asyncio.shield(work)).version

    def _refuse_if_closing(self) -> None:
        if self._closing:
            raise Unavailable(f"the writer of gallery {self.spec.name!r} is not taking changes")

    async def maintain(self) -> None:
        """Do all maintenance that is due now."""
        while await self._maintenance_step():
            pass
        if self._cleaning is not None:
            await asyncio.wait([self._cleaning])

    async def _submit(self, write: Write, *, rows: int, size: int, mark: Mark) -> WriteResult:
        if (known := self._answers.find(mark, version=self._version)) is not None:
            return known
        request = self._queue.find(mark)
        if request is None:
            if self._closing or self._task is None:
                raise Unavailable(f"the writer of gallery {self.spec.name!r} is not taking writes")
            if rows == 0:
                return WriteResult(0, self._version)
            request = self._queue.add(write, mark, rows=rows, size=size)
            self._wake.set()
        waiter: asyncio.Future[WriteResult] = asyncio.get_running_loop().create_future()
        request.waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            request.waiters.remove(waiter)
            if not request.waiters and not request.started:
                self._queue.withdraw(request)
            raise

    async def _run(self) -> None:
        while self._queue or not self._closing:
            if self._queue:
                await self._commit_group()
                if self._busy_commits >= self._policy.busy_every:
                    await self._maintenance_step()
                continue
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), self._limits.pause_s)
            except TimeoutError:
                while not self._queue and not self._closing and await self._maintenance_step():
                    pass

    async def _commit_group(self) -> None:
        requests = self._queue.take()
        began = time.perf_counter()
        loop = asyncio.get_running_loop()
        writes = [request.write for request in requests]
        marks = [request.mark for request in requests]
        commits: list[Commit] = []
        results: list[WriteResult | Exception]
        try:
            commits, results = await loop.run_in_executor(self._commit_thread, self._committer.commit, writes, marks)
        except Exception:
            # Whatever this was, those who wait have to hear of it and the next group has to go on.
            _log.exception("a group of %d writes failed unexpectedly", len(requests))
            results = [StoreFailure("the write failed unexpectedly") for _ in requests]
        self._queue.took(sum(request.rows for request in requests), time.perf_counter() - began)
        self._busy_commits += 1
        for commit in commits:
            self._publish(commit)
        for request, result in zip(requests, results, strict=True):
            self._answer(request, result)

    def _answer(self, request: WriteRequest, result: WriteResult | Exception) -> None:
        self._queue.forget(request)
        if isinstance(result, WriteResult):
            self._answers.add(request.mark, result)
            result = replace(result, back_off_s=self._queue.back_off_s())
        for waiter in request.waiters:
            if waiter.done():
                continue
            if isinstance(result, WriteResult):
                waiter.set_result(result)
            else:
                waiter.set_exception(result)

    def _publish(self, commit: Commit) -> None:
        self._version = max(self._version, commit.version)
        if not commit.whole:
            # Followers see a gap and read what was written from the store.
            commit = replace(commit, base_version=commit.version)
            self._delivery.publish(Delta(commit.version, commit.version, commit.upserts, ()))
        elif commit.version != commit.base_version:
            self._delivery.publish(Delta(commit.base_version, commit.version, commit.upserts, commit.deleted_ids))

    async def _committed(self, work: Callable[[], tuple[T, Commit]]) -> T:
        result, commit = await asyncio.get_running_loop().run_in_executor(self._commit_thread, work)
        self._publish(commit)
        return result

    async def _on_commit_thread(self, work: Callable[[], Commit]) -> Commit:
        commit = await asyncio.get_running_loop().run_in_executor(self._commit_thread, work)
        self._publish(commit)
        return commit

    async def _maintenance_step(self) -> bool:
        """One bounded step; False when nothing (more) is due."""
        self._busy_commits = 0
        self._clean_up_if_due()
        if self._maintained_at == self._version:
            return False
        loop = asyncio.get_running_loop()
        try:
            commit = await loop.run_in_executor(self._commit_thread, self._committer.compact)
        except StoreFailure:
            commit = None
        if commit is None:
            self._maintained_at = self._version
            return False
        self._publish(commit)
        return True

    def _clean_up_if_due(self) -> None:
        if self._cleaning is not None and not self._cleaning.done():
            return
        now = time.monotonic()
        many = self._version - self._cleaned_version >= self._policy.clean_up_every
        late = now - self._cleaned_s >= self._policy.keep_s and self._version > self._policy.keep_versions
        if many or late:
            self._cleaned_version, self._cleaned_s = self._version, now
            self._cleaning = asyncio.get_running_loop().run_in_executor(self._clean_thread, self._committer.clean_up)
