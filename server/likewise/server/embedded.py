"""The whole server in one process, from its settings."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from likewise.server.app import Server, ServerOptions, StartupError, release, serving
from likewise.server.batcher import BatchLimits
from likewise.server.galleries import EmbeddedGalleries, StoreOptions
from likewise.server.images import ImageLimits
from likewise.server.metrics import Metrics
from likewise.server.models import ModelsError, OnnxModels, read_repositories
from likewise.server.session import Runtime
from likewise.server.settings import Settings
from likewise.shards.shard import ShardLimits
from likewise.shards.writer import WriterLimits


def embedded(settings: Settings) -> Server:
    """A server with models, shards and writers of its own, not started yet.

    Raises:
        StartupError: If a model repository cannot be read.
    """
    metrics = Metrics(version=release())
    models = _models(settings, metrics)
    galleries = EmbeddedGalleries(
        StoreOptions(
            uri=settings.store,
            cache=settings.cache,
            threads=settings.thread_count,
            shard=ShardLimits(max_queued=settings.shard_queue),
            writer=WriterLimits(
                queue_rows=settings.write_queue_rows,
                queue_bytes=settings.write_queue_bytes,
                group_rows=settings.write_group_rows,
            ),
            on_batch=lambda batch: metrics.batch("shard", batch.queries, batch.waiting),
        )
    )
    return Server(
        server_options(settings),
        models=models,
        galleries=galleries,
        parts=(galleries, _LoadedModels(models)),
        metrics=metrics,
        announce=galleries.serving_at,
    )


def server_options(settings: Settings) -> ServerOptions:
    """The router's part of the settings."""
    return ServerOptions(
        host=settings.host,
        port=settings.port,
        metrics_port=settings.metrics_port,
        threads=settings.thread_count,
        max_calls=settings.max_calls,
        batch_concurrency=settings.batch_concurrency,
        stream_in_flight=settings.stream_in_flight,
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
    """The models as a part: opened before the first call has to wait for it."""

    def __init__(self, models: OnnxModels) -> None:
        self._models = models

    async def open(self) -> None:
        await self._models.load()

    async def close(self) -> None:
        await self._models.close()


def _models(settings: Settings, metrics: Metrics) -> OnnxModels:
    try:
        return OnnxModels(
            read_repositories(settings.models),
            runtime=Runtime(threads=settings.thread_count),
            batch=BatchLimits(
                max_batch=settings.encoder_batch,
                max_items=max(settings.encoder_queue, settings.encoder_batch),
                max_delay_s=settings.encoder_wait_ms / 1e3,
            ),
            images=ImageLimits(max_bytes=settings.image_max_bytes, max_pixels=settings.image_max_pixels),
            workers=settings.thread_count,
            on_batch=lambda report: metrics.batch(report.name, report.size, report.waiting),
        )
    except ModelsError as error:
        raise StartupError(f"models: {error}") from error
