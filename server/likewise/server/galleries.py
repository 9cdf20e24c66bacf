"""All galleries of a store in this process: one writer each, its shards beside it, plain awaits between them."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from likewise.server import reshape
from likewise.server.errors import AlreadyExists, NotFound, Unavailable, Unimplemented
from likewise.server.open_gallery import Generation, OpenGallery, StoreTruth
from likewise.server.protocols import GalleryHandle
from likewise.server.read_only import ReadOnlyWriter
from likewise.server.snapshots import EmbeddedSnapshots
from likewise.server.validate import shown
from likewise.shards.batcher import ShardBatch
from likewise.shards.cache import discard, sweep
from likewise.shards.filter import matcher
from likewise.shards.gallery_store import GalleryStore
from likewise.shards.lock import StoreLock
from likewise.shards.partition import Partition
from likewise.shards.recall_guard import guard_executor
from likewise.shards.search_threads import SearchThreads
from likewise.shards.shard import Shard, ShardLimits, build_executor
from likewise.shards.spec import GallerySpec
from likewise.shards.spec_change import check_change
from likewise.shards.store import GalleryExists, GalleryNotFound, Store, local_folder
from likewise.shards.write_queue import WriterLimits
from likewise.shards.writer import GalleryWriter

log = logging.getLogger(__name__)

T = TypeVar("T")

CACHE_FOLDER: Final = ".cache"
"""Where sealed indexes lie below a local store."""

_NAMES_SHOWN: Final = 20
_OPENED_AT_ONCE: Final = 4
"""Galleries loaded side by side at the start: each reads its store with threads of its own."""


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How a store is opened.

    Attributes:
        uri: Folder or URI.
        cache: Folder for sealed indexes; None: below a local store, else none.
        threads: For searches and store reads, of all shards together.
        shard: Bounds of each shard.
        writer: Bounds of each writer.
        on_batch: Told about every batch of searches of every shard, on the event loop.
        export_root: Folder for exports and imports; None for neither.
    """

    uri: str
    cache: Path | None = None
    threads: int = 2
    shard: ShardLimits = field(default_factory=ShardLimits)
    writer: WriterLimits = field(default_factory=WriterLimits)
    on_batch: Callable[[ShardBatch], None] | None = None
    export_root: Path | None = None


class EmbeddedGalleries:
    """`protocols.Galleries` of a store that this process alone writes to; a `app.Part`.

    Args:
        options: Which store, and how.

    Attributes:
        snapshots: The same galleries' snapshots, exports and imports.
    """

    def __init__(self, options: StoreOptions) -> None:
        self._options = options
        folder = local_folder(options.uri)
        self._lock = None if folder is None else StoreLock(folder)
        self._cache = options.cache or (None if folder is None else folder / CACHE_FOLDER)
        self._searching = SearchThreads(options.threads, name="search")
        # Apart from the searches: a partition that loads would hold up whatever is searched meanwhile.
        self._reading = ThreadPoolExecutor(options.threads, thread_name_prefix="read")
        self._building = build_executor()
        self._checking = guard_executor()
        self._store: Store | None = None
        self._open: dict[str, OpenGallery] = {}
        self._changing = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self.snapshots = EmbeddedSnapshots(self, options.export_root)

    async def open(self) -> None:
        """Lock the store and load every gallery.

        Raises:
            StoreLocked: If another process has it.
            ShardError: If the store or a gallery cannot be read, or a newer release wrote it.
        """
        if self._lock is not None:
            await asyncio.to_thread(self._lock.acquire)
        self._store = store = await asyncio.to_thread(Store, self._options.uri)
        slots = asyncio.Semaphore(_OPENED_AT_ONCE)

        async def load(name: str) -> None:
            async with slots:
                gallery = await asyncio.to_thread(store.open, name)
                await asyncio.to_thread(gallery.history.drop_holds)  # a cluster may have had the store before
                self._open[name] = await self._load(gallery)

        try:
            async with asyncio.TaskGroup() as group:
                for name in await asyncio.to_thread(store.galleries):
                    group.create_task(load(name))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def close(self) -> None:
        """Commit what waits, close everything and give the store back. What is being built is given up."""
        await self.snapshots.close()
        for gallery in list(self._open.values()):
            await gallery.give_up()
        async with self._changing:
            for name in sorted(self._open):
                await self._open.pop(name).close()
        for task in list(self._retiring):
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        self._searching.shutdown(wait=False)
        self._reading.shutdown(wait=False)
        self._building.shutdown(wait=False, cancel_futures=True)
        self._checking.shutdown(wait=False, cancel_futures=True)
        if self._lock is not None:
            self._lock.release()

    def serving_at(self, address: str) -> None:
        """Say in the store's lock where this process serves, for whoever finds it taken."""
        if self._lock is not None:
            self._lock.update_address(address)

    async def read_document(self, name: str) -> Any:
        """See `promotion_record.Documents`."""
        return await asyncio.to_thread(self._opened().read_document, name)

    async def write_document(self, name: str, value: Any) -> None:
        """See `promotion_record.Documents`."""
        await asyncio.to_thread(self._opened().write_document, name, value)

    def get(self, name: str) -> GalleryHandle:
        """See `Galleries.get`."""
        return self._gallery(name).handle

    def handles(self) -> Sequence[GalleryHandle]:
        """See `Galleries.handles`."""
        return [self._open[name].handle for name in sorted(self._open)]

    async def create(self, spec: GallerySpec) -> GalleryHandle:
        """See `Galleries.create`."""
        return await self._exclusively(lambda: self._create(spec))

    async def update(self, spec: GallerySpec, *, min_recall: float | None = None) -> GalleryHandle:
        """See `Galleries.update`."""
        gallery = self._gallery(spec.name)
        before = gallery.spec
        if spec.replicas != before.replicas:
            _one_replica(spec)
        if gallery.change is not None:
            raise reshape.change_running(spec.name)
        if not reshape.is_reshape(before, spec):
            return await self._exclusively(lambda: self._update(spec, before=before))
        async with self._changing:  # to begin only: nothing is changed in place from here on
            self._gallery(spec.name).check_unchanged(before)
            change = gallery.change = asyncio.create_task(self._reshape(gallery, spec, min_recall))
        try:
            return await change  # cancelled with its caller, and waited for: it takes back what it did
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise Unavailable(f"gallery {spec.name!r} went, or the server stops: it was not changed") from None
        finally:
            gallery.change = None

    async def delete(self, name: str) -> None:
        """See `Galleries.delete`."""
        await self._exclusively(lambda: self._delete(name))

    async def adopt(self, name: str, make: Callable[[], GalleryStore]) -> GalleryHandle:
        """Serve a gallery of that name, which `make` puts into the store: all of it, or nothing stays.

        Args:
            name: Of the gallery.
            make: Blocking; raises GalleryExists if the name is taken.

        Raises:
            AlreadyExists: If the name is taken.
        """
        return await self._exclusively(lambda: self._adopt(name, make))

    def store(self) -> Store:
        """The open store.

        Raises:
            Unavailable: If it is not open yet.
        """
        return self._opened()

    def store_of(self, name: str) -> GalleryStore:
        """One gallery's part of the store.

        Raises:
            NotFound: If there is none of that name.
        """
        return self._gallery(name).store

    async def _create(self, spec: GallerySpec) -> GalleryHandle:
        store = self._opened()
        _one_replica(spec)
        return await self._adopt(spec.name, lambda: store.create(spec))

    async def _adopt(self, name: str, make: Callable[[], GalleryStore]) -> GalleryHandle:
        try:
            made = await asyncio.to_thread(make)
        except GalleryExists as error:
            raise AlreadyExists(str(error), reason="GALLERY_EXISTS", metadata={"gallery": name}) from error
        try:
            gallery = self._open[name] = await self._load(made)
        except BaseException:
            # Half a gallery would be there at the next start although its creation failed.
            await asyncio.to_thread(self._opened().delete, name)
            raise
        return gallery.handle

    async def _update(self, spec: GallerySpec, *, before: GallerySpec) -> GalleryHandle:
        """Change what the shards that serve can be told of."""
        gallery = self._gallery(spec.name)
        gallery.check_unchanged(before)
        if spec != gallery.spec:
            await gallery.writer.update_spec(spec)
            for shard in gallery.shards:
                await shard.update(spec)
            gallery.describe(spec)
        return gallery.handle

    async def _reshape(self, gallery: OpenGallery, spec: GallerySpec, min_recall: float | None) -> GalleryHandle:
        """Build other shards beside those that serve, check them and switch; else leave everything as it was."""
        check_change(gallery.spec, spec)
        if isinstance(gallery.writer, ReadOnlyWriter):
            await gallery.writer.update_spec(spec)  # refuses
        log.info("gallery %r: %s are built beside %s", spec.name, reshape.shape(spec), reshape.shape(gallery.spec))
        shards = await self._shards(gallery.store, spec, gallery.writer)
        try:
            await reshape.check(shards, spec, StoreTruth(gallery.store), min_recall=min_recall)
            # From the commit on there is no way back: whoever gives up now is told of what is.
            switch = asyncio.create_task(self._switch(gallery, spec, shards))
            try:
                await asyncio.shield(switch)
            except asyncio.CancelledError:
                await asyncio.wait((switch,))
                raise
        finally:
            if gallery.shards is not shards:
                await asyncio.shield(asyncio.create_task(self._drop(Generation(shards), gallery, spec)))
        return gallery.handle

    async def _switch(self, gallery: OpenGallery, spec: GallerySpec, shards: tuple[Shard, ...]) -> None:
        await gallery.writer.update_spec(spec)
        before = gallery.spec
        replaced = gallery.switch(spec, shards)
        log.info("gallery %r is served by %s", spec.name, reshape.shape(spec))
        task = asyncio.create_task(self._retire(replaced, gallery, before), name=f"retire-{spec.name}")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _retire(self, generation: Generation, gallery: OpenGallery, spec: GallerySpec) -> None:
        """End replaced shards once no call uses them; until then they follow the writer as before."""
        try:
            await generation.unused()
        finally:
            await self._drop(generation, gallery, spec)

    async def _drop(self, generation: Generation, gallery: OpenGallery, spec: GallerySpec) -> None:
        await generation.close(gallery.writer)
        if self._cache is not None and reshape.is_reshape(gallery.spec, spec):  # unless it is back at that shape
            await asyncio.to_thread(discard, self._cache, spec)

    async def _delete(self, name: str) -> None:
        gallery = self._gallery(name)
        await gallery.give_up()
        del self._open[name]
        await gallery.close()
        try:
            await asyncio.to_thread(self._opened().delete, name)
        except GalleryNotFound as error:
            raise self._not_found(name) from error
        if self._cache is not None:
            await asyncio.to_thread(discard, self._cache, gallery.spec)

    async def _load(self, store: GalleryStore) -> OpenGallery:
        writer: GalleryWriter | ReadOnlyWriter
        if store.read_only:
            writer = ReadOnlyWriter(store)
        else:
            writer = GalleryWriter(store, matcher(lambda: store.spec.attributes), limits=self._options.writer)
        await writer.start()
        try:
            shards = await self._shards(store, store.spec, writer)
        except BaseException:
            await writer.close()
            raise
        if self._cache is not None:
            await asyncio.to_thread(sweep, self._cache, store.spec)
        return OpenGallery(store, writer, shards, store.spec)

    async def _shards(
        self, store: GalleryStore, spec: GallerySpec, writer: GalleryWriter | ReadOnlyWriter
    ) -> tuple[Shard, ...]:
        """Loaded shards that follow the writer."""
        shards = tuple(
            Shard(
                spec,
                number,
                Partition(store, number, spec.shards),
                executor=self._searching,
                reader=self._reading,
                builder=self._building,
                checker=self._checking,
                cache=self._cache,
                limits=self._options.shard,
                on_batch=self._options.on_batch,
            )
            for number in range(spec.shards)
        )
        # Following first: a commit during the load would else be missed until the next one shows the gap.
        for shard in shards:
            writer.add_sink(shard)
        try:
            async with asyncio.TaskGroup() as group:
                for shard in shards:
                    group.create_task(shard.start())
        except BaseException as failure:
            for shard in shards:
                await writer.remove_sink(shard)
                await shard.close()
            if isinstance(failure, BaseExceptionGroup):
                raise failure.exceptions[0] from None
            raise
        return shards

    async def _exclusively(self, change: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Make one change at a time, to its end: a caller that goes away must not leave half a gallery."""

        async def locked() -> T:
            async with self._changing:
                return await change()

        return await asyncio.shield(asyncio.create_task(locked()))

    def _opened(self) -> Store:
        if self._store is None:
            raise Unavailable("the store is not open yet", retry_after_s=1.0)
        return self._store

    def _gallery(self, name: str) -> OpenGallery:
        gallery = self._open.get(name)
        if gallery is None:
            raise self._not_found(name)
        return gallery

    def _not_found(self, name: str) -> NotFound:
        known = sorted(self._open)
        more = f" and {len(known) - _NAMES_SHOWN} more" if len(known) > _NAMES_SHOWN else ""
        return NotFound(
            f"no gallery {shown(name)}, there are {known[:_NAMES_SHOWN]}{more}",
            reason="GALLERY_NOT_FOUND",
            metadata={"gallery": name[:256]},
        )


def _one_replica(spec: GallerySpec) -> None:
    if spec.replicas > 1:
        raise Unimplemented(
            f"spec.replicas is {spec.replicas}, but this server keeps each shard once, in its own process: copies need "
            "a cluster (likewise serve --ray)",
            field="spec.replicas",
        )
