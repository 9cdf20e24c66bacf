"""The whole server in one process, from its settings."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from likewise.server.app import Server, ServerOptions, StartupError, release, serving
from likewise.server.batcher import BatchLimits, BatchReport
from likewise.server.galleries import EmbeddedGalleries, StoreOptions
from likewise.server.graphs import open_graph
from likewise.server.images import ImageLimits
from likewise.server.inference_statistics import InferenceStatistics
from likewise.server.metrics import Metrics
from likewise.server.models import ModelsError, OnnxModels, read_repositories
from likewise.server.promotion_record import Documents
from likewise.server.session import CPU, CUDA, Runtime
from likewise.server.settings import Settings
from likewise.shards.shard import ShardLimits
from likewise.shards.write_queue import WriterLimits


def embedded(settings: Settings) -> Server:
    """A server with models, shards and writers of its own, not started yet.

    Raises:
        StartupError: If a model repository cannot be read.
    """
    metrics = Metrics(version=release())
    galleries = EmbeddedGalleries(
        StoreOptions(
            uri=settings.store,
            cache=settings.cache,
            export_root=settings.export_root,
            threads=settings.thread_count,
            shard=shard_limits(settings),
            writer=WriterLimits(
                queue_rows=settings.write_queue_rows,
                queue_bytes=settings.write_queue_bytes,
                group_rows=settings.write_group_rows,
            ),
            on_batch=lambda batch: metrics.batch("shard", batch.queries, batch.waiting),
        )
    )
    statistics = InferenceStatistics()

    def note(report: BatchReport) -> None:
        metrics.model_batch(report)
        statistics.batch(report)

    models = _models(settings, note, galleries)
    return Server(
        server_options(settings),
        models=models,
        galleries=galleries,
        parts=(galleries, _LoadedModels(models)),
        metrics=metrics,
        announce=galleries.serving_at,
        versions=models,
        served=models,
        statistics=statistics,
    )


def runtime(settings: Settings) -> Runtime:
    """Where and how models run."""
    on_gpu = settings.encoder_device == "cuda"
    return Runtime(
        # CUDA has no kernel for some operators: the CPU has to be there beside it.
        providers=(CUDA, CPU) if on_gpu else (CPU,),
        threads=settings.thread_count,
        allow_fallback=settings.encoder_fallback,
        device_id=settings.encoder_gpu,
        gpu_memory_bytes=settings.encoder_gpu_bytes,
    )


def shard_limits(settings: Settings) -> ShardLimits:
    """The shards' part of the settings."""
    return ShardLimits(
        max_queued=settings.shard_queue,
        recall_share=settings.recall_share,
        partial_share=settings.partial_index_share,
    )


def server_options(settings: Settings) -> ServerOptions:
    """The router's part of the settings."""
    return ServerOptions(
        host=settings.host,
        port=settings.port,
        share_port=settings.share_port,
        socket=None if settings.socket is None else settings.socket.absolute(),
        metrics_port=settings.metrics_port,
        threads=settings.thread_count,
        max_calls=settings.max_calls,
        max_unread_calls=settings.max_unread_calls,
        batch_concurrency=settings.batch_concurrency,
        kept_encodings=settings.kept_encodings,
        stream_in_flight=settings.stream_in_flight,
        write_bytes=settings.write_queue_bytes,
        drain_grace_s=settings.drain_grace_s,
    )


@contextlib.asynccontextmanager
async def running_server(**options: Any) -> AsyncIterator[str]:
    """The address of an embedded server that runs inside the block, on a free port unless told otherwise.

    Args:
        options: Fields of `Settings`; `store` should be given.
    """
    async with serving(embedded(Settings(**{"port": 0, "drain_grace_s": 0, **options}))) as address:
        yield address


class _LoadedModels:
    """The models as a part: opened after the store, which says what is in use, and before the first call needs them."""

    def __init__(self, models: OnnxModels) -> None:
        self._models = models

    async def open(self) -> None:
        try:
            await self._models.open()
        except ModelsError as error:
            raise StartupError(f"models: {error}") from error

    async def close(self) -> None:
        await self._models.close()


def _models(settings: Settings, note: Callable[[BatchReport], None], documents: Documents) -> OnnxModels:
    try:
        return OnnxModels(
            read_repositories(settings.models),
            runtime=runtime(settings),
            batch=BatchLimits(
                max_batch=settings.encoder_batch,
                max_items=max(settings.encoder_queue, settings.encoder_batch),
                max_delay_s=settings.encoder_wait_ms / 1e3,
            ),
            images=ImageLimits(max_bytes=settings.image_max_bytes, max_pixels=settings.image_max_pixels),
            workers=settings.thread_count,
            on_batch=note,
            documents=documents,
            open_graph=open_graph,
        )
    except ModelsError as error:
        raise StartupError(f"models: {error}") from error
