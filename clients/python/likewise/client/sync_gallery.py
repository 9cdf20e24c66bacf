"""A gallery as ordinary code sees it; it may be shared by threads."""

import builtins
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from likewise.client.snapshots import Export, Snapshot
from likewise.client.transport import Transport
from likewise.client.upsert_stream import Window, upsert_stream
from likewise.client.upserts import UpsertResult
from likewise.client.vector_search import many_calls, vector_search
from likewise.client.versions import GalleryMemory, VersionToken


class Gallery:
    """A gallery: what `Client.gallery` and `Client.create_gallery` give.

    Reads see every write made through the same handle before them (`at_least`), whichever shard or router answers.
    """

    def __init__(self, transport: Transport, memory: GalleryMemory) -> None:
        self._transport = transport
        self._memory = memory

    @property
    def name(self) -> str:
        """Its name."""
        return self._memory.name

    @property
    def version(self) -> VersionToken | None:
        """The newest write made through this handle; None before the first."""
        return self._memory.newest

    def info(self, *, timeout: float | None = None) -> GalleryInfo:
        """What the gallery is made of, as the server has it now."""
        self._memory.info = self._transport.call(galleries.get_call(self.name), timeout)
        return self._memory.info

    def search(self, *, timeout: float | None = None, **query: Unpack[Query]) -> Hits:
        """The items most like a reference under the conditions; see `Query` for the arguments.

        The reference is one of image, text, id and vector; with a condition alone, the condition is searched for.

        Searches by a vector that threads make at the same time through one client, and that differ in nothing else,
        travel together: one waits for a call under way, some 50 ms at most. One with a request_id, or with less than
        50 ms of time, always is a call of its own.

        Raises:
            NotFound: If the gallery or the reference item is not there. An empty answer is no error.
            InvalidArgument: If an argument is wrong; `field` names it.
            ResourceExhausted: If the server refuses it, or (CLIENT_QUEUE_FULL) if so many like it wait in this client
                already that it could not be answered within `timeout`; come back after `retry_after_s`.
        """
        if search := vector_search(self._memory, query):
            return self._transport.searches.search(search, timeout)
        return self._transport.call(requests.search_call(self._memory, query), timeout)

    def search_batch(
        self,
        queries: Sequence[Query] | npt.NDArray[Any],
        *,
        timeout: float | None = None,
        **shared: Unpack[Query],
    ) -> builtins.list[Hits]:
        """Many searches, answered in order.

        Args:
            queries: `Query(...)`s, or an (n, d) array of reference vectors.
            timeout: Seconds for each message of up to 1,000 queries, or 256 rows of an array.
            shared: Arguments of every query; a query's own win.

        Raises:
            BatchError: If queries failed; it has the answers of the others.
        """
        calls = many_calls(self._memory, queries, shared)
        return requests.batch_hits(self._transport.gather(calls, timeout))

    def search_stream(
        self, queries: Iterable[Query] | npt.NDArray[Any], *, timeout: float | None = None, **shared: Unpack[Query]
    ) -> Iterator[Hits | LikewiseError]:
        """Searches as they come from an iterable of any length, several under way at once, answered in order.

        A query that fails gives its error in its place, and the stream goes on.

        Args:
            queries: As for `search_batch`; read no further ahead than what is under way.
            timeout: Seconds for each query.
            shared: Arguments of every query; a query's own win.
        """
        calls = (requests.search_call(self._memory, query) for query in requests.each_query(queries, shared))
        return (outcome for _, outcome in self._transport.pipeline(((None, call) for call in calls), timeout))

    def explain(self, ids: Sequence[str] = (), *, timeout: float | None = None, **query: Unpack[Query]) -> Explanation:
        """A search with its reasons: plan per shard, and where some items rank and why."""
        return self._transport.call(requests.explain_call(self._memory, ids, query), timeout)

    def compose(self, *, timeout: float | None = None, **query: Unpack[Query]) -> Composition:
        """The query vector that a search with this reference and these conditions would use."""
        return self._transport.call(requests.compose_call(self._memory, query), timeout)

    def upsert(
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
        """Insert items, or replace those whose id is there; durable when this returns.

        Everything but the images is checked before the first byte is sent. Then the rows go in chunks of about 4 MiB,
        four under way at once; several chunks go over one stream, which is taken up again where it was when it breaks.
        A chunk is stored all or not at all; when one is refused no more are sent, and the error's `upsert` says which
        ids are stored and which are not. Of an id given twice the last row stays.

        Args:
            ids: n strings of 1 to 512 bytes.
            images: n paths, bytes, PIL images or (h, w, 3) uint8 arrays; or
            vectors: (n, d) floats of any length but zero; or
            texts: n descriptions.
            attributes: n dicts, or a dict of columns (lists, arrays), a pandas DataFrame or a pyarrow Table; None for
                no value. Items lose the attributes that are left out.
            thumbnails: n small images, to be shown beside hits.
            progress: See `ProgressChoice`.
            timeout: Seconds for each chunk.
            request_id: Makes a repeat of the very same call safe: what was stored is not applied twice.

        Raises:
            InvalidArgument: If a row is wrong.
        """
        columns: Columns = {} if attributes is None else to_columns(attributes, len(ids))
        prepared = upserts.prepare(
            self.name,
            ids,
            images=images,
            vectors=vectors,
            texts=texts,
            columns=columns,
            schema=self._schema(columns, timeout),
            thumbnails=thumbnails,
        )
        tally = upserts.Tally(prepared, max_bytes=self._transport.config.max_message_bytes, request_id=request_id)
        source = ((chunk, chunk.call) for chunk in tally.left())
        if tally.alone:
            outcomes = self._transport.pipeline(source, timeout)
        else:
            window: Window[upserts.Chunk, UpsertResult] = Window(self.name, request_id)
            streamed = upsert_stream(self._transport, window, source, timeout)
            outcomes = streamed
        with Reporter(progress, tally.total) as reporter:
            for chunk, outcome in outcomes:
                if version := tally.add(chunk, outcome):
                    self._memory.remember(version)
                reporter.update(tally.stored)
        return tally.result()

    def get(
        self,
        ids: Sequence[str],
        *,
        attributes: Sequence[str] | bool = True,
        vectors: bool = False,
        at_least: VersionToken | bool = True,
        timeout: float | None = None,
    ) -> Items:
        """Stored items in the order asked for; those that are not there are in `missing`."""
        dim = self._known(timeout).dim if vectors else 0
        calls = items.get_calls(self._memory, ids, attributes=attributes, vectors=vectors, at_least=at_least, dim=dim)
        return items.merge_items(builtins.list(self._transport.gather(calls, timeout)))

    def delete(
        self,
        ids: Sequence[str] | None = None,
        *,
        where: Filter | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> int:
        """Delete by ids or by a filter; gives how many were there. Ids that are not there are no error."""
        deleted = 0
        for part in self._transport.gather(items.delete_calls(self._memory, ids, where, request_id), timeout):
            self._memory.remember(part.version)
            deleted += part.count
        return deleted

    def count(
        self, *, where: Filter | None = None, at_least: VersionToken | bool = True, timeout: float | None = None
    ) -> int:
        """How many live items the filter leaves; without one, how many there are."""
        return self._transport.call(items.count_call(self._memory, where, at_least), timeout)

    def list(
        self,
        *,
        where: Filter | None = None,
        attributes: Sequence[str] | bool = True,
        vectors: bool = False,
        page_size: int = 1000,
        at_least: VersionToken | bool = True,
        timeout: float | None = None,
    ) -> Iterator[Item]:
        """Items in id order, fetched page by page as they are taken.

        Args:
            where: Filter.
            attributes: Names, or True for all.
            vectors: Bring the vectors along.
            page_size: Items a call, at most 10,000; fewer with long vectors.
            at_least: See `Query`.
            timeout: Seconds for each page.
        """
        dim = self._known(timeout).dim if vectors else 0
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
            page = self._transport.call(call, timeout)
            yield from page.items
            token = page.next_page_token
            if not token:
                return

    def stats(self, *, timeout: float | None = None) -> GalleryStats:
        """Counts, sizes and states of the gallery's shards."""
        return self._transport.call(gallery_stats.stats_call(self.name), timeout)

    def wait_until_ready(self, *, timeout: float | None = None) -> GalleryStats:
        """Wait until every shard serves the newest version with its index built; answers are right before too.

        Raises:
            DeadlineExceeded: If that takes longer than `timeout` seconds (default the client's).
            FailedPrecondition: If an index cannot be built.
        """
        waiting = gallery_stats.Waiting(self._transport.config.deadline_s(timeout))
        while not waiting.is_over(stats := self.stats(timeout=waiting.left_s())):
            time.sleep(gallery_stats.POLL_S)
        return stats

    def update(
        self,
        *,
        attributes: Mapping[str, object] | None = None,
        shards: int | None = None,
        replicas: int | None = None,
        index: str | IndexSpec | None = None,
        min_recall: float | None = None,
        timeout: float | None = None,
    ) -> GalleryInfo:
        """Change shards, replicas or index of a gallery in use, or add attributes.

        For another number of shards, or an index built in another way, new shards are built beside those that serve,
        checked, and switched to in one step. The call lasts as long, and one that ends earlier changes nothing: give it
        a `timeout` that the build fits into.

        Args:
            attributes: Added to those there are.
            shards: How many partitions.
            replicas: How many copies of each.
            index: A kind, or an `IndexSpec`.
            min_recall: Lowest recall@10 to accept of a new index, against the comparison with every row; default 0.9.
            timeout: Seconds; default the client's.

        Raises:
            FailedPrecondition: If what is asked for cannot be changed, the new shards fail a check, or the gallery is
                being changed already.
            DeadlineExceeded: If it takes longer than `timeout`; nothing is changed then.
        """
        current = self.info(timeout=timeout)
        call = galleries.update_call(
            current, attributes=attributes, shards=shards, replicas=replicas, index=index, min_recall=min_recall
        )
        self._memory.info = self._transport.call(call, timeout)
        return self._memory.info

    def create_snapshot(
        self,
        name: str,
        *,
        note: str = "",
        version: VersionToken | int | None = None,
        timeout: float | None = None,
    ) -> Snapshot:
        """Name a version, so that it stays whatever is written later; durable when this returns, and no copy.

        Args:
            name: [a-z][a-z0-9_-]{0,62}, unique in the gallery.
            note: Any text of at most 1,024 bytes.
            version: Default the newest. One of the last ten minutes can be named too: the one before a mistake.
            timeout: Seconds; default the client's.

        Raises:
            AlreadyExists: If the name is taken.
            FailedPrecondition: If the version has been cleaned up.
        """
        call = snapshots.create_call(self.name, name, note=note, version=version)
        return self._transport.call(call, timeout)

    def snapshots(self, *, timeout: float | None = None) -> builtins.list[Snapshot]:
        """The gallery's snapshots in name order."""
        found: builtins.list[Snapshot] = []
        token = ""
        while True:
            page = self._transport.call(snapshots.list_call(self.name, token), timeout)
            found.extend(page.snapshots)
            token = page.next_page_token
            if not token:
                return found

    def delete_snapshot(self, name: str, *, timeout: float | None = None) -> None:
        """Forget a snapshot; galleries restored from it stay.

        Raises:
            NotFound: If it is not there.
        """
        self._transport.call(snapshots.delete_call(self.name, name), timeout)

    def restore_snapshot(
        self, snapshot: str, name: str, *, read_only: bool = False, timeout: float | None = None
    ) -> "Gallery":
        """Make a gallery of a snapshot; it needs neither the snapshot nor this gallery any more.

        Args:
            snapshot: Name of the snapshot.
            name: Of the gallery to be.
            read_only: It takes no writes: the way to search a past version.
            timeout: Seconds; default the client's.

        Raises:
            NotFound: If there is no such snapshot.
            AlreadyExists: If the name is taken.
        """
        call = snapshots.restore_call(self.name, snapshot, name, read_only=read_only)
        return Gallery(self._transport, GalleryMemory(name, self._transport.call(call, timeout)))

    def export(
        self,
        folder: str,
        *,
        snapshot: str | None = None,
        progress: ProgressChoice = None,
        timeout: float | None = math.inf,
    ) -> Export:
        """Write the gallery, whole, to a new folder below the server's export root.

        Args:
            folder: Its name there.
            snapshot: Which version; default the newest.
            progress: See `ProgressChoice`, in bytes.
            timeout: Seconds; default no limit.

        Raises:
            AlreadyExists: If the folder is there.
            FailedPrecondition: If the server has no export root.
        """
        call = snapshots.export_call(self.name, folder, snapshot=snapshot)
        return snapshots.follow(self._transport.stream(call, timeout), call, progress)

    def __repr__(self) -> str:
        return f"<Gallery {self.name!r}>"

    def _known(self, timeout: float | None) -> GalleryInfo:
        return self._memory.info or self.info(timeout=timeout)

    def _schema(self, columns: Columns, timeout: float | None) -> Schema:
        if not columns:
            return {}
        schema = self._known(timeout).schema
        if unknown_names(columns, schema):  # perhaps added since
            schema = self.info(timeout=timeout).schema
        return schema
