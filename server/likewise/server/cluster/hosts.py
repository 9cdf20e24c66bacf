"""What runs inside an actor: one part, built as the embedded server builds it, behind a gRPC server. No Ray here."""

import asyncio
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from likewise.internal.v1 import controller_service_pb2 as pb
from likewise.internal.v1 import shard_service_pb2_grpc, writer_service_pb2_grpc
from likewise.server.batcher import BatchLimits
from likewise.server.cluster.model_messages import model_route
from likewise.server.cluster.parts import EncoderPart, Part, Serving, ShardPart, WriterPart
from likewise.server.errors import ServiceError, Unavailable
from likewise.server.galleries import CACHE_FOLDER, StoreOptions
from likewise.server.graphs import open_graph
from likewise.server.images import ImageLimits
from likewise.server.model_folders import read_repositories
from likewise.server.model_versions import ModelVersions
from likewise.server.read_only import ReadOnlyWriter
from likewise.server.remote.channels import Channels, Endpoint
from likewise.server.remote.delta_sink import RemoteSink
from likewise.server.remote.inference_servicer import InferenceServicer
from likewise.server.remote.shard_servicer import ShardServicer
from likewise.server.remote.shard_stub import ShardRoute, ShardStub
from likewise.server.remote.writer_servicer import WriterServicer
from likewise.server.session import Runtime
from likewise.shards.cache import SealedCache, sweep
from likewise.shards.filter import matcher
from likewise.shards.gallery_store import GalleryStore
from likewise.shards.partition import Partition
from likewise.shards.shard import Shard
from likewise.shards.spec import GallerySpec, generation
from likewise.shards.store import GalleryNotFound, Store, local_folder
from likewise.shards.writer import GalleryWriter
from likewise.v1 import model_service_pb2

QUIET_S: Final = 2.0
"""Without a call for so long, no query that began before a version went out of use is still under way: a query calls
its encoder and its composer one right after the other."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HostOptions:
    """How parts are hosted.

    Attributes:
        store: The store, the same for every node, and the bounds of shards and writers.
        models: Model repositories besides the built-in one.
        listen: Interface of the parts' gRPC servers; "": the node's own address in the cluster.
        threads: Threads of a shard.
        runtime: Where and how models run.
        images: What images are refused.
        batch: Bounds of each model's batcher.
        log_level: Least severe record written.
    """

    store: StoreOptions
    models: tuple[Path, ...] = ()
    listen: str = ""
    threads: int = 1
    runtime: Runtime = field(default_factory=Runtime)
    images: ImageLimits = field(default_factory=ImageLimits)
    batch: BatchLimits = field(default_factory=BatchLimits)
    log_level: str = "INFO"

    @property
    def cache(self) -> Path | None:
        """Folder for sealed indexes; None for none."""
        folder = local_folder(self.store.uri)
        return self.store.cache or (None if folder is None else folder / CACHE_FOLDER)


class Host(Protocol):
    """A part and its server."""

    async def start(self) -> Serving:
        """Load and serve; again: say the same."""
        ...

    async def follow(self, *generations: Sequence[Sequence[str]]) -> None:
        """See `PlacedPart.follow`."""
        ...

    async def update(self, spec: GallerySpec) -> None:
        """See `PlacedPart.update`."""
        ...

    async def load(self, name: str, version: int) -> pb.ModelRoute:
        """See `PlacedPart.load`."""
        ...

    async def unload(self, name: str, version: int) -> None:
        """See `PlacedPart.unload`."""
        ...

    async def stop(self, *, grace_s: float, discard: bool) -> None:
        """See `PlacedPart.stop`."""
        ...


def make_host(part: Part, options: HostOptions) -> Host:
    """The host of a part; nothing is loaded yet."""
    match part:
        case ShardPart():
            return ShardHost(part, options)
        case WriterPart():
            return WriterHost(part, options)
        case EncoderPart():
            return EncoderHost(part, options)


class ShardHost:
    """One replica of a shard."""

    def __init__(self, part: ShardPart, options: HostOptions) -> None:
        self._part = part
        self._options = options
        self._endpoint = Endpoint(options.listen)
        self._shard: Shard | None = None
        self._servicer: ShardServicer | None = None
        self._serving: Serving | None = None

    async def start(self) -> Serving:
        """See `Host.start`."""
        if self._serving is None:
            part, options = self._part, self._options
            gallery = await asyncio.to_thread(_open, options, part.spec)
            # The store's description: it may have changed since the part was placed. A part of a generation that is not
            # on record is still to be tried, or replaced already: it has its own.
            on_record = generation(gallery.spec) == generation(part.spec)
            spec = gallery.spec if on_record else part.spec
            if on_record and options.cache is not None:
                await asyncio.to_thread(sweep, options.cache, spec)
            shard = Shard(
                spec,
                part.shard,
                Partition(gallery, part.shard, spec.shards),
                cache=options.cache,
                limits=options.store.shard,
            )
            await shard.start()
            self._shard = shard
            self._servicer = ShardServicer(shard, shard, spec=spec, number=part.shard)
            shard_service_pb2_grpc.add_ShardServiceServicer_to_server(self._servicer, self._endpoint.server)
            self._serving = Serving(await self._endpoint.start())
        return self._serving

    async def follow(self, *generations: Sequence[Sequence[str]]) -> None:
        """Shards follow nobody: the writer comes to them."""

    async def update(self, spec: GallerySpec) -> None:
        """See `Host.update`."""
        if self._shard is not None:
            await self._shard.update(dataclasses.replace(spec, shards=self._part.spec.shards))

    async def load(self, name: str, version: int) -> pb.ModelRoute:
        """Only encoders have models."""
        raise NotImplementedError(f"{self._part.name} has no models. This is a bug.")

    async def unload(self, name: str, version: int) -> None:
        """Only encoders have models."""
        raise NotImplementedError(f"{self._part.name} has no models. This is a bug.")

    async def stop(self, *, grace_s: float, discard: bool) -> None:
        """See `Host.stop`."""
        if self._servicer is not None:
            self._servicer.drain()
        await self._endpoint.stop(grace_s=grace_s)
        if self._shard is not None:
            await self._shard.close()
        if discard and self._options.cache is not None:
            cache = SealedCache(self._options.cache, self._part.spec, self._part.shard)
            for space in self._part.spec.spaces:
                await asyncio.to_thread(cache.discard, space)


class WriterHost:
    """A gallery's writer. It commits; the lock of the store is the controller's."""

    def __init__(self, part: WriterPart, options: HostOptions) -> None:
        self._part = part
        self._options = options
        self._endpoint = Endpoint(options.listen)
        self._channels = Channels()
        self._sinks: dict[tuple[int, int, str], RemoteSink] = {}  # by (shards there are, number, address)
        self._writer: GalleryWriter | ReadOnlyWriter | None = None
        self._gallery: GalleryStore | None = None
        self._serving: Serving | None = None
        self._following = asyncio.Lock()

    async def start(self) -> Serving:
        """See `Host.start`."""
        if self._serving is None:
            gallery = await asyncio.to_thread(_open, self._options, self._part.spec)
            writer: GalleryWriter | ReadOnlyWriter
            if gallery.read_only:
                writer = ReadOnlyWriter(gallery)
            else:
                limits = self._options.store.writer
                writer = GalleryWriter(gallery, matcher(lambda: gallery.spec.attributes), limits=limits)
            await writer.start()
            self._writer, self._gallery = writer, gallery
            servicer = WriterServicer(writer, writer, gallery_id=self._part.spec.gallery_id)
            writer_service_pb2_grpc.add_WriterServiceServicer_to_server(servicer, self._endpoint.server)
            self._serving = Serving(await self._endpoint.start())
        return self._serving

    async def follow(self, *generations: Sequence[Sequence[str]]) -> None:
        """Push commits to these addresses from now on; a new one is told the version first: it may have missed it."""
        async with self._following:
            if self._writer is None or self._gallery is None:
                return
            wanted = {
                (len(shards), shard, address)
                for shards in generations
                for shard, addresses in enumerate(shards)
                for address in addresses
            }
            for key in self._sinks.keys() - wanted:
                sink = self._sinks.pop(key)
                await self._writer.remove_sink(sink)
                await sink.close()
            for count, shard, address in sorted(wanted - self._sinks.keys()):
                sink = self._sink(dataclasses.replace(self._gallery.spec, shards=count), shard, address)
                self._sinks[count, shard, address] = sink
                self._writer.add_sink(sink)
                await sink.follow(await self._writer.version())
            await self._channels.keep({address for _, _, address in wanted})

    async def update(self, spec: GallerySpec) -> None:
        """See `Host.update`."""
        if self._writer is not None and self._gallery is not None and self._gallery.spec != spec:
            await self._writer.update_spec(spec)

    async def load(self, name: str, version: int) -> pb.ModelRoute:
        """Only encoders have models."""
        raise NotImplementedError(f"{self._part.name} has no models. This is a bug.")

    async def unload(self, name: str, version: int) -> None:
        """Only encoders have models."""
        raise NotImplementedError(f"{self._part.name} has no models. This is a bug.")

    async def stop(self, *, grace_s: float, discard: bool) -> None:
        """See `Host.stop`; what waits is committed."""
        await self._endpoint.stop(grace_s=grace_s)
        if self._writer is not None:
            await self._writer.close()
        for sink in self._sinks.values():
            await sink.close()
        await self._channels.close()

    def _sink(self, spec: GallerySpec, shard: int, address: str) -> RemoteSink:
        route: ShardRoute = ShardRoute(
            f"shard {shard} of gallery {spec.name!r}",
            self._channels,
            shard_service_pb2_grpc.ShardServiceStub,
            addresses=[address],
        )
        return RemoteSink(ShardStub(route, gallery_id=spec.gallery_id, shard=shard), spec=spec, shard=shard)


class EncoderHost:
    """The models of one family: the versions that the controller asks for, and no others."""

    def __init__(self, part: EncoderPart, options: HostOptions) -> None:
        self._part = part
        self._options = options
        self._endpoint = Endpoint(options.listen)
        self._models: ModelVersions | None = None
        self._address = ""

    async def start(self) -> Serving:
        """See `Host.start`."""
        if self._models is None:
            options = self._options
            self._models = ModelVersions(
                await asyncio.to_thread(read_repositories, options.models),
                runtime=options.runtime,
                batch=options.batch,
                images=options.images,
                workers=options.threads,
                open_graph=open_graph,
            )
            InferenceServicer(self._models).register(self._endpoint.server)
            self._address = await self._endpoint.start()
        ready = [model for model in self._models.models() if model.state == model_service_pb2.MODEL_STATE_READY]
        return Serving(self._address, tuple(self._route(model) for model in ready))

    async def follow(self, *generations: Sequence[Sequence[str]]) -> None:
        """Encoders follow nobody."""

    async def update(self, spec: GallerySpec) -> None:
        """Encoders know no gallery."""

    async def load(self, name: str, version: int) -> pb.ModelRoute:
        """See `PlacedPart.load`. A version that cannot be opened says why to whoever calls it."""
        try:
            await self._versions.load(name, version)
        except ServiceError as error:
            _log.error("%s/%d: %s", name, version, error)
            if all((model.name, model.version) != (name, version) for model in self._versions.models()):
                # Its manifest cannot be read on this node.
                failed = model_service_pb2.Model(name=name, version=version, family=self._part.family)
                failed.state, failed.reason = model_service_pb2.MODEL_STATE_FAILED, str(error)
                return pb.ModelRoute(model=failed)
        return self._route(self._versions.slot((name, version)).describe())

    async def unload(self, name: str, version: int) -> None:
        """See `PlacedPart.unload`. Routers do not say when their last query with a version has ended: silence does."""
        key = (name, version)
        left = QUIET_S - self._versions.slot(key).idle_s
        while left > 0:
            await asyncio.sleep(left)
            left = QUIET_S - self._versions.slot(key).idle_s
        if self._versions.slot(key).state != model_service_pb2.MODEL_STATE_AVAILABLE:
            await asyncio.shield(self._versions.free(key))

    async def stop(self, *, grace_s: float, discard: bool) -> None:
        """See `Host.stop`."""
        await self._endpoint.stop(grace_s=grace_s)
        if self._models is not None:
            await self._models.close()

    @property
    def _versions(self) -> ModelVersions:
        if self._models is None:
            raise Unavailable(f"{self._part.name} is not up yet", retry_after_s=1.0)
        return self._models

    def _route(self, model: model_service_pb2.Model) -> pb.ModelRoute:
        return model_route(self._versions.slot((model.name, model.version)).manifest, model)


def _open(options: HostOptions, wanted: GallerySpec) -> GalleryStore:
    """The gallery, if it is still the one that the part was placed for. Blocking."""
    gallery = Store(options.store.uri).open(wanted.name)
    if gallery.spec.gallery_id != wanted.gallery_id:
        raise GalleryNotFound(f"gallery {wanted.name!r} is {gallery.spec.gallery_id} now, not {wanted.gallery_id}")
    return gallery
