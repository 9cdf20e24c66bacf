# ruff: noqa: ASYNC109 - these timeouts are gRPC deadlines, which the server sees too; asyncio.timeout is local
"""The client for asyncio.

The methods are those of `likewise.client.sync`, where each is described; what answers there is awaited here.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Self

import grpc

from likewise.client import galleries, models, snapshots
from likewise.client.aio_gallery import AsyncGallery
from likewise.client.channel import DEFAULT_TIMEOUT_S, Option, make_config
from likewise.client.errors import AlreadyExists
from likewise.client.galleries import GalleryInfo, IndexSpec
from likewise.client.models import Health, Model, Promotion
from likewise.client.progress import ProgressChoice
from likewise.client.transport import AsyncTransport
from likewise.client.versions import GalleryMemory
from likewise.wire import MAX_MESSAGE_BYTES


class AsyncClient:
    """As `Client`; an async context manager, to be used from one event loop."""

    def __init__(
        self,
        address: str | Sequence[str] = "127.0.0.1:50051",
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Mapping[str, str | bytes] | None = None,
        options: Sequence[Option] = (),
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        config = make_config(
            address,
            timeout=timeout,
            credentials=credentials,
            metadata=metadata,
            options=options,
            max_message_bytes=max_message_bytes,
        )
        self._transport = AsyncTransport(config)

    async def create_gallery(
        self,
        name: str,
        *,
        encoder: str | None = None,
        dim: int | None = None,
        attributes: Mapping[str, object] | None = None,
        shards: int | None = None,
        replicas: int | None = None,
        index: str | IndexSpec | None = None,
        exist_ok: bool = False,
        timeout: float | None = None,
    ) -> AsyncGallery:
        """As `Client.create_gallery`."""
        create = galleries.create_call(
            name, encoder=encoder, dim=dim, attributes=attributes, shards=shards, replicas=replicas, index=index
        )
        try:
            info = await self._transport.call(create, timeout)
        except AlreadyExists:
            if not exist_ok:
                raise
            info = await self._transport.call(galleries.get_call(name), timeout)
            galleries.check_same(info, encoder=encoder, dim=dim, attributes=attributes)
        return AsyncGallery(self._transport, GalleryMemory(name, info))

    def gallery(self, name: str) -> AsyncGallery:
        """As `Client.gallery`; asks the server nothing and is not awaited."""
        return AsyncGallery(self._transport, GalleryMemory(name))

    async def galleries(self, *, timeout: float | None = None) -> list[GalleryInfo]:
        """As `Client.galleries`."""
        found: list[GalleryInfo] = []
        token = ""
        while True:
            page = await self._transport.call(galleries.list_call(token), timeout)
            found.extend(page.galleries)
            token = page.next_page_token
            if not token:
                return found

    async def delete_gallery(self, name: str, *, timeout: float | None = None) -> None:
        """As `Client.delete_gallery`."""
        await self._transport.call(galleries.delete_call(name), timeout)

    async def import_gallery(
        self,
        folder: str,
        name: str | None = None,
        *,
        read_only: bool = False,
        progress: ProgressChoice = None,
        timeout: float | None = math.inf,
    ) -> AsyncGallery:
        """As `Client.import_gallery`."""
        call = snapshots.import_call(folder, name, read_only=read_only)
        info = await snapshots.follow_async(self._transport.stream(call, timeout), call, progress)
        return AsyncGallery(self._transport, GalleryMemory(info.name, info))

    async def models(self, *, timeout: float | None = None) -> list[Model]:
        """As `Client.models`."""
        found: list[Model] = []
        token = ""
        while True:
            page = await self._transport.call(models.list_call(token), timeout)
            found.extend(page.models)
            token = page.next_page_token
            if not token:
                return found

    async def model(self, name: str, version: int | None = None, *, timeout: float | None = None) -> Model:
        """As `Client.model`."""
        return await self._transport.call(models.get_call(name, version), timeout)

    async def load_model(self, name: str, version: int | None = None, *, timeout: float | None = None) -> Model:
        """As `Client.load_model`."""
        return await self._transport.call(models.load_call(name, version), timeout)

    async def promote_model(
        self,
        name: str,
        version: int,
        *,
        together: Mapping[str, int] | None = None,
        min_overlap: float = 0.0,
        force: bool = False,
        timeout: float | None = None,
    ) -> Promotion:
        """As `Client.promote_model`."""
        call = models.promote_call(name, version, together=together, min_overlap=min_overlap, force=force)
        return await self._transport.call(call, timeout)

    async def rollback_model(self, name: str, *, timeout: float | None = None) -> Promotion:
        """As `Client.rollback_model`."""
        return await self._transport.call(models.rollback_call(name), timeout)

    async def unload_model(self, name: str, version: int, *, timeout: float | None = None) -> None:
        """As `Client.unload_model`."""
        await self._transport.call(models.unload_call(name, version), timeout)

    async def health(self, service: str = "", *, timeout: float | None = None) -> Health:
        """As `Client.health`."""
        return await self._transport.call(models.health_call(service), timeout)

    async def close(self) -> None:
        """As `Client.close`."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
