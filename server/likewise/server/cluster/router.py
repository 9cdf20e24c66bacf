"""What a router sees of a cluster: its galleries and models, as the controller's table says. No Ray here."""

import asyncio
from collections.abc import Awaitable, Callable

from likewise.internal.v1 import controller_service_pb2 as pb
from likewise.server.cluster.follower import Follower
from likewise.server.cluster.routed import RoutedGalleries
from likewise.server.cluster.routed_models import RoutedModels
from likewise.server.remote.channels import Channels


class Routing:
    """Galleries and models that follow a controller.

    Args:
        resolve: Says where the controller is, now and whenever its connection is lost.

    Attributes:
        galleries: Of the cluster.
        models: Of the cluster.
    """

    def __init__(self, resolve: Callable[[], Awaitable[str]]) -> None:
        self._channels = Channels()
        self.galleries = RoutedGalleries(self._channels)
        self.models = RoutedModels(self._channels)
        self._follower = Follower(resolve, self._channels, self._take, lingering=self.galleries.lingering)
        self.galleries.follow(self._follower)
        self.models.follow(self._follower)

    @property
    def controller(self) -> str:
        """host:port of the controller; "" before it is found."""
        return next(iter(self._follower.controller.addresses), "")

    async def start(self, *, timeout_s: float) -> None:
        """Follow the controller; returns when every part it lists is up.

        Raises:
            TimeoutError: If they are not in time.
        """
        async with asyncio.timeout(timeout_s):
            await self._follower.start()
            await self.complete()

    async def connect(self, *, timeout_s: float) -> None:
        """Follow the controller; returns with its first table, whatever is up of that.

        Raises:
            TimeoutError: If the controller does not answer in time.
        """
        async with asyncio.timeout(timeout_s):
            await self._follower.start()

    async def complete(self) -> None:
        """Return when every part that the controller lists is up."""
        await self._follower.wait_for(_complete)

    async def close(self) -> None:
        """Stop following and close all channels."""
        await self._follower.close()
        await self._channels.close()

    def _take(self, table: pb.RoutingTable) -> None:
        # Models first: a gallery that was made for a new line-up is never seen without it.
        self.models.take(table)
        self.galleries.take(table)


def _complete(table: pb.RoutingTable) -> bool:
    galleries = all(g.writer and all(shard.addresses for shard in g.shards) for g in table.galleries)
    return galleries and all(model.addresses for model in table.models if model.model.in_use)
