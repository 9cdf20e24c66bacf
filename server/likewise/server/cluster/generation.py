"""How the controller looks at shards that are to take a gallery over: calls to them, and the store to compare with."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol, TypeVar

from likewise.internal.v1 import shard_service_pb2_grpc
from likewise.server.remote.channels import Channels
from likewise.server.remote.shard_stub import ShardRoute, ShardStub
from likewise.shards.protocols import F32, ShardSearch
from likewise.shards.spec import GallerySpec

T = TypeVar("T")

Connect = Callable[[GallerySpec, Sequence[str]], AbstractAsyncContextManager[Sequence[ShardSearch]]]
"""Shards of a description from their addresses, by number; for as long as the context lasts."""


@asynccontextmanager
async def connected(spec: GallerySpec, addresses: Sequence[str]) -> AsyncIterator[Sequence[ShardSearch]]:
    """`Connect` over channels of its own."""
    channels = Channels()

    def stub(number: int, address: str) -> ShardStub:
        route: ShardRoute = ShardRoute(
            f"new shard {number} of gallery {spec.name!r}",
            channels,
            shard_service_pb2_grpc.ShardServiceStub,
            addresses=[address],
        )
        return ShardStub(route, gallery_id=spec.gallery_id, shard=number)

    try:
        yield [stub(number, address) for number, address in enumerate(addresses)]
    finally:
        await channels.close()


class Stored(Protocol):
    """The part of a `Catalogue` that shards are compared with. Blocking."""

    def version(self, name: str) -> int:
        """Newest committed store version of a gallery."""
        ...

    def rows(self, name: str, version: int, shard: int, shards: int) -> int:
        """Live rows of one of `shards` partitions at a version; HistoryGone if that is cleaned up."""
        ...

    def sample(self, name: str, space: str, count: int) -> F32:
        """(n, dim) unit vectors of up to `count` random rows."""
        ...


class CatalogueTruth:
    """`reshape.Truth` of one gallery of a catalogue."""

    def __init__(self, catalogue: Stored, name: str) -> None:
        self._catalogue = catalogue
        self._name = name

    async def version(self) -> int:
        """See `Truth.version`."""
        return await _blocking(functools.partial(self._catalogue.version, self._name))

    async def rows(self, version: int, shard: int, shards: int) -> int:
        """See `Truth.rows`."""
        return await _blocking(functools.partial(self._catalogue.rows, self._name, version, shard, shards))

    async def sample(self, space: str, count: int) -> F32:
        """See `Truth.sample`."""
        return await _blocking(functools.partial(self._catalogue.sample, self._name, space, count))


async def _blocking(call: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(None, call)
