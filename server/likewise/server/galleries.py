"""All galleries of a store in this process: one writer each, its shards beside it, plain awaits between them."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from likewise.server.errors import AlreadyExists, FailedPrecondition, NotFound, Unavailable, Unimplemented
from likewise.server.protocols import GalleryHandle
from likewise.server.read_only import ReadOnlyWriter
from likewise.server.snapshots import EmbeddedSnapshots
from likewise.server.validate import shown
from likewise.shards.batcher import ShardBatch
from likewise.shards.cache import SealedCache
from likewise.shards.filter import matcher
from likewise.shards.gallery_store import GalleryStore
from likewise.shards.lock import StoreLock
from likewise.shards.partition import Partition
from likewise.shards.shard import Shard, ShardLimits, build_executor
from likewise.shards.spec import GallerySpec
from likewise.shards.spec_change import SpecChange
from likewise.shards.store import GalleryExists, GalleryNotFound, Store, local_folder
from likewise.shards.writer import GalleryWriter, WriterLimits

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


@dataclass(slots=True, eq=False)
class _Gallery:
    """One open gallery; `spec` and `shards` change when it is updated."""

    spec: GallerySpec
    store: GalleryStore
    writer: GalleryWriter | ReadOnlyWriter
    shards: tuple[Shard, ...]

    @property
    def handle(self) -> GalleryHandle:
        return GalleryHandle(self.spec, self.shards, self.writer)


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
        self._searching = ThreadPoolExecutor(options.threads, thread_name_prefix="search")
        self._building = build_executor()
        self._store: Store | None = None
        self._open: dict[str, _Gallery] = {}
        self._changing = asyncio.Lock()
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
                self._open[name] = await self._load(await asyncio.to_thread(store.open, name))

        try:
            async with asyncio.TaskGroup() as group:
                for name in await asyncio.to_thread(store.galleries):
                    group.create_task(load(name))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def close(self) -> None:
        """Commit what waits, close everything and give the store back."""
        await self.snapshots.close()
        async with self._changing:
            for name in sorted(self._open):
                await _close(self._open.pop(name))
        self._searching.shutdown(wait=False)
        self._building.shutdown(wait=False, cancel_futures=True)
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
        gallery = self._open.get(name)
        if gallery is None:
            raise self._not_found(name)
        return gallery.handle

    def handles(self) -> Sequence[GalleryHandle]:
        """See `Galleries.handles`."""
        return [self._open[name].handle for name in sorted(self._open)]

    async def create(self, spec: GallerySpec) -> GalleryHandle:
        """See `Galleries.create`."""
        return await self._exclusively(lambda: self._create(spec))

    async def update(self, spec: GallerySpec) -> GalleryHandle:
        """See `Galleries.update`."""
        return await self._exclusively(lambda: self._update(spec))

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
        gallery = self._open.get(name)
        if gallery is None:
            raise self._not_found(name)
        return gallery.store

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

    async def _update(self, spec: GallerySpec) -> GalleryHandle:
        gallery = self._open.get(spec.name)
        if gallery is None:
            raise self._not_found(spec.name)
        if spec == gallery.spec:
            return gallery.handle
        if spec.replicas != gallery.spec.replicas:
            _one_replica(spec)
        try:
            await gallery.writer.update_spec(spec)
        except SpecChange as error:
            raise FailedPrecondition(str(error), reason="SPEC_CHANGE") from error
        if spec.shards == gallery.spec.shards:
            for shard in gallery.shards:
                await shard.update(spec)
            gallery.spec = spec
            return gallery.handle
        shards = await self._shards(gallery.store, spec, gallery.writer)
        old, gallery.shards, gallery.spec = gallery.shards, shards, spec
        for shard in old:
            await gallery.writer.remove_sink(shard)
            await shard.close()
        return gallery.handle

    async def _delete(self, name: str) -> None:
        gallery = self._open.pop(name, None)
        if gallery is None:
            raise self._not_found(name)
        await _close(gallery)
        try:
            await asyncio.to_thread(self._opened().delete, name)
        except GalleryNotFound as error:
            raise self._not_found(name) from error
        if self._cache is not None:
            await asyncio.to_thread(_discard, self._cache, gallery.spec)

    async def _load(self, store: GalleryStore) -> _Gallery:
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
        return _Gallery(store.spec, store, writer, shards)

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
                builder=self._building,
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

    def _not_found(self, name: str) -> NotFound:
        known = sorted(self._open)
        more = f" and {len(known) - _NAMES_SHOWN} more" if len(known) > _NAMES_SHOWN else ""
        return NotFound(
            f"no gallery {shown(name)}, there are {known[:_NAMES_SHOWN]}{more}",
            reason="GALLERY_NOT_FOUND",
            metadata={"gallery": name[:256]},
        )


async def _close(gallery: _Gallery) -> None:
    await gallery.writer.close()
    for shard in gallery.shards:
        await shard.close()


def _discard(folder: Path, spec: GallerySpec) -> None:
    for shard in range(spec.shards):
        for space in spec.spaces:
            SealedCache(folder, spec, shard).discard(space)


def _one_replica(spec: GallerySpec) -> None:
    if spec.replicas > 1:
        raise Unimplemented(
            f"spec.replicas is {spec.replicas}, but this server keeps each shard once, in its own process: copies need "
            "a cluster (likewise serve --ray)",
            field="spec.replicas",
        )
