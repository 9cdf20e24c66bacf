# ruff: noqa: ASYNC109 - these timeouts are gRPC deadlines, which the server sees too; asyncio.timeout is local
"""A gallery as asyncio code sees it.

The methods are those of `likewise.client.sync_gallery`, where each is described; what answers there is awaited here,
what iterates there is iterated with `async for`.
"""

import asyncio
import builtins
import math
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Unpack

import numpy.typing as npt

from likewise.client import galleries, gallery_stats, items, requests, snapshots, upserts
from likewise.client.attributes import Columns, Schema, to_columns, unknown_names
from likewise.client.errors import LikewiseError
from likewise.client.filters import Filter
from likewise.client.galleries import GalleryInfo, IndexSpec
from likewise.client.gallery_stats import GalleryStats
from likewise.client.hits import Explanation, Hits
from likewise.client.items import Item, Items
from likewise.client.progress import ProgressChoice, Reporter
from likewise.client.requests import Query
from likewise.client.results import Composition
from likewise.client.rpc import Call
from likewise.client.snapshots import Export, Snapshot
from likewise.client.transport import AsyncTransport, in_thread
from likewise.client.upsert_stream import Window, async_upsert_stream
from likewise.client.upserts import UpsertResult
from likewise.client.vector_search import many_calls, vector_search
from likewise.client.versions import GalleryMemory, VersionToken


class AsyncGallery:
    """As `Gallery`. Files are read and images packed in threads, never on the event loop."""

    def __init__(self, transport: AsyncTransport, memory: GalleryMemory) -> None:
        self._transport = transport
        self._memory = memory

    @property
    def name(self) -> str:
        """As `Gallery.name`."""
        return self._memory.name

    @property
    def version(self) -> VersionToken | None:
        """As `Gallery.version`."""
        return self._memory.newest

    async def info(self, *, timeout: float | None = None) -> GalleryInfo:
        """As `Gallery.info`."""
        self._memory.info = await self._transport.call(galleries.get_call(self.name), timeout)
        return self._memory.info

    async def search(self, *, timeout: float | None = None, **query: Unpack[Query]) -> Hits:
        """As `Gallery.search`."""
        if search := vector_search(self._memory, query):
            return await self._transport.searches.search(search, timeout)
        if "image" in query:
            # A call of its own: on a stream, other searches would wait for its bytes.
            call = await asyncio.to_thread(requests.search_call, self._memory, query)
            return await self._transport.call(call, timeout)
        return await self._transport.search(requests.search_call(self._memory, query), timeout)

    async def search_batch(
        self,
        queries: Sequence[Query] | npt.NDArray[Any],
        *,
        timeout: float | None = None,
        **shared: Unpack[Query],
    ) -> builtins.list[Hits]:
        """As `Gallery.search_batch`."""
        calls = many_calls(self._memory, queries, shared)
        return requests.batch_hits([answer async for answer in self._transport.gather(calls, timeout)])

    async def search_stream(
        self,
        queries: Iterable[Query] | AsyncIterable[Query] | npt.NDArray[Any],
        *,
        timeout: float | None = None,
        **shared: Unpack[Query],
    ) -> AsyncIterator[Hits | LikewiseError]:
        """As `Gallery.search_stream`; the queries may come from an async iterable too."""

        async def source() -> AsyncIterator[tuple[None, Call[Hits]]]:
            if isinstance(queries, AsyncIterable):
                async for query in queries:
                    (filled,) = requests.each_query([query], shared)
                    yield None, await asyncio.to_thread(requests.search_call, self._memory, filled)
            else:
                each = requests.each_query(queries, shared)
                async for call in in_thread(requests.search_call(self._memory, query) for query in each):
                    yield None, call

        async for _, outcome in self._transport.pipeline(source(), timeout):
            yield outcome

    async def explain(
        self, ids: Sequence[str] = (), *, timeout: float | None = None, **query: Unpack[Query]
    ) -> Explanation:
        """As `Gallery.explain`."""
        call = await asyncio.to_thread(requests.explain_call, self._memory, ids, query)
        return await self._transport.call(call, timeout)

    async def compose(self, *, timeout: float | None = None, **query: Unpack[Query]) -> Composition:
        """As `Gallery.compose`."""
        call = await asyncio.to_thread(requests.compose_call, self._memory, query)
        return await self._transport.call(call, timeout)

    async def upsert(
        self,
        ids: Sequence[str],
        *,
        images: Any = None,
        vectors: npt.ArrayLike | None = None,
        texts: Sequence[str] | None = None,
        attributes: Any = None,
        thumbnails: Sequence[bytes] | None = None,
        progress: ProgressChoice = None,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> UpsertResult:
        """As `Gallery.upsert`."""
        columns: Columns = {} if attributes is None else await asyncio.to_thread(to_columns, attributes, len(ids))
        prepared = await asyncio.to_thread(
            upserts.prepare,
            self.name,
            ids,
            images=images,
            vectors=vectors,
            texts=texts,
            columns=columns,
            schema=await self._schema(columns, timeout),
            thumbnails=thumbnails,
        )
        limit = self._transport.config.max_message_bytes
        tally = await asyncio.to_thread(upserts.Tally, prepared, max_bytes=limit, request_id=request_id)

        async def source() -> AsyncIterator[tuple[upserts.Chunk, Call[UpsertResult]]]:
            async for chunk in in_thread(tally.left()):
                yield chunk, chunk.call

        if tally.alone:
            outcomes = self._transport.pipeline(source(), timeout)
        else:
            window: Window[upserts.Chunk, UpsertResult] = Window(self.name, request_id)
            streamed = async_upsert_stream(self._transport, window, source(), timeout)
            outcomes = streamed
        with Reporter(progress, tally.total) as reporter:
            async for chunk, outcome in outcomes:
                if version := tally.add(chunk, outcome):
                    self._memory.remember(version)
                reporter.update(tally.stored)
        return tally.result()

    async def get(
        self,
        ids: Sequence[str],
        *,
        attributes: Sequence[str] | bool = True,
        vectors: bool = False,
        at_least: VersionToken | bool = True,
        timeout: float | None = None,
    ) -> Items:
        """As `Gallery.get`."""
        dim = (await self._known(timeout)).dim if vectors else 0
        calls = items.get_calls(self._memory, ids, attributes=attributes, vectors=vectors, at_least=at_least, dim=dim)
        return items.merge_items([answer async for answer in self._transport.gather(calls, timeout)])

    async def delete(
        self,
        ids: Sequence[str] | None = None,
        *,
        where: Filter | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> int:
        """As `Gallery.delete`."""
        deleted = 0
        calls = items.delete_calls(self._memory, ids, where, request_id)
        async for part in self._transport.gather(calls, timeout):
            self._memory.remember(part.version)
            deleted += part.count
        return deleted

    async def count(
        self, *, where: Filter | None = None, at_least: VersionToken | bool = True, timeout: float | None = None
    ) -> int:
        """As `Gallery.count`."""
        return await self._transport.call(items.count_call(self._memory, where, at_least), timeout)

    async def list(
        self,
        *,
        where: Filter | None = None,
        attributes: Sequence[str] | bool = True,
        vectors: bool = False,
        page_size: int = 1000,
        at_least: VersionToken | bool = True,
        timeout: float | None = None,
    ) -> AsyncIterator[Item]:
        """As `Gallery.list`."""
        dim = (await self._known(timeout)).dim if vectors else 0
        token = ""
        while True:
            call = items.list_call(
                self._memory,
                where=where,
                attributes=attributes,
                vectors=vectors,
                page_size=items.rows_a_call(vectors, dim, page_size),
                page_token=token,
                at_least=at_least,
            )
            page = await self._transport.call(call, timeout)
            for item in page.items:
                yield item
            token = page.next_page_token
            if not token:
                return

    async def stats(self, *, timeout: float | None = None) -> GalleryStats:
        """As `Gallery.stats`."""
        return await self._transport.call(gallery_stats.stats_call(self.name), timeout)

    async def wait_until_ready(self, *, timeout: float | None = None) -> GalleryStats:
        """As `Gallery.wait_until_ready`."""
        waiting = gallery_stats.Waiting(self._transport.config.deadline_s(timeout))
        while not waiting.is_over(stats := await self.stats(timeout=waiting.left_s())):  # noqa: ASYNC110 - of a server
            await asyncio.sleep(gallery_stats.POLL_S)
        return stats

    async def update(
        self,
        *,
        attributes: Mapping[str, object] | None = None,
        shards: int | None = None,
        replicas: int | None = None,
        index: str | IndexSpec | None = None,
        min_recall: float | None = None,
        timeout: float | None = None,
    ) -> GalleryInfo:
        """As `Gallery.update`."""
        current = await self.info(timeout=timeout)
        call = galleries.update_call(
            current, attributes=attributes, shards=shards, replicas=replicas, index=index, min_recall=min_recall
        )
        self._memory.info = await self._transport.call(call, timeout)
        return self._memory.info

    async def create_snapshot(
        self,
        name: str,
        *,
        note: str = "",
        version: VersionToken | int | None = None,
        timeout: float | None = None,
    ) -> Snapshot:
        """As `Gallery.create_snapshot`."""
        call = snapshots.create_call(self.name, name, note=note, version=version)
        return await self._transport.call(call, timeout)

    async def snapshots(self, *, timeout: float | None = None) -> builtins.list[Snapshot]:
        """As `Gallery.snapshots`."""
        found: builtins.list[Snapshot] = []
        token = ""
        while True:
            page = await self._transport.call(snapshots.list_call(self.name, token), timeout)
            found.extend(page.snapshots)
            token = page.next_page_token
            if not token:
                return found

    async def delete_snapshot(self, name: str, *, timeout: float | None = None) -> None:
        """As `Gallery.delete_snapshot`."""
        await self._transport.call(snapshots.delete_call(self.name, name), timeout)

    async def restore_snapshot(
        self, snapshot: str, name: str, *, read_only: bool = False, timeout: float | None = None
    ) -> "AsyncGallery":
        """As `Gallery.restore_snapshot`."""
        call = snapshots.restore_call(self.name, snapshot, name, read_only=read_only)
        info = await self._transport.call(call, timeout)
        return AsyncGallery(self._transport, GalleryMemory(name, info))

    async def export(
        self,
        folder: str,
        *,
        snapshot: str | None = None,
        progress: ProgressChoice = None,
        timeout: float | None = math.inf,
    ) -> Export:
        """As `Gallery.export`."""
        call = snapshots.export_call(self.name, folder, snapshot=snapshot)
        return await snapshots.follow_async(self._transport.stream(call, timeout), call, progress)

    def __repr__(self) -> str:
        return f"<AsyncGallery {self.name!r}>"

    async def _known(self, timeout: float | None) -> GalleryInfo:
        return self._memory.info or await self.info(timeout=timeout)

    async def _schema(self, columns: Columns, timeout: float | None) -> Schema:
        if not columns:
            return {}
        schema = (await self._known(timeout)).schema
        if unknown_names(columns, schema):  # perhaps added since
            schema = (await self.info(timeout=timeout)).schema
        return schema
