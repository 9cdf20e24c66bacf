"""Follows the controller's routing table, through lost connections and restarts of the controller."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from grpc import aio

from likewise.internal.v1 import controller_service_pb2 as pb
from likewise.internal.v1 import controller_service_pb2_grpc as pb_grpc
from likewise.server.remote.channels import Channels, Route

if TYPE_CHECKING:
    ControllerRoute = Route[pb_grpc.ControllerServiceAsyncStub]
else:
    ControllerRoute = Route

BACKOFF_S: Final = (0.1, 3.0)
"""First and longest wait before the stream is opened again."""

_log = logging.getLogger(__name__)


class Follower:
    """Keeps a stream to the controller open and hands every new table on.

    Args:
        resolve: Says where the controller is now; asked again whenever the stream ends.
        channels: The process's channels.
        on_table: Called on the loop with the first table of every stream and each newer one, in order.
        lingering: Addresses to keep channels to although the newest table has them no more: calls begun before it came
            still use them.

    Attributes:
        controller: Route to the controller, for calls other than the stream.
    """

    def __init__(
        self,
        resolve: Callable[[], Awaitable[str]],
        channels: Channels,
        on_table: Callable[[pb.RoutingTable], None],
        *,
        lingering: Callable[[], set[str]] = set,
    ) -> None:
        self.controller: ControllerRoute = Route("the controller", channels, pb_grpc.ControllerServiceStub)
        self._resolve = resolve
        self._channels = channels
        self._on_table = on_table
        self._lingering = lingering
        self._table = pb.RoutingTable()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def table(self) -> pb.RoutingTable:
        """The newest table; not to be changed."""
        return self._table

    async def start(self) -> None:
        """Follow from now on; returns with the first table."""
        self._task = asyncio.create_task(self._run(), name="follow-routing-table")
        await self.wait_for(lambda table: table.version > 0)

    async def wait_for(self, holds: Callable[[pb.RoutingTable], bool]) -> None:
        """Return when the table is as wanted."""
        while not holds(self._table):
            news = asyncio.ensure_future(self._news.wait())
            ended: set[asyncio.Task[None]] = set() if self._task is None else {self._task}
            try:
                await asyncio.wait({news, *ended}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                news.cancel()
            if self._task is not None and self._task.done():
                self._task.result()

    async def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        wait, longest = BACKOFF_S
        while True:
            try:
                address = await self._resolve()
                self.controller.move([address])
                stub = pb_grpc.ControllerServiceStub(self._channels.get(address))
                # A stream's first table counts whatever its version: the controller may be another one, on a machine
                # whose clock is behind, and it alone knows what runs.
                first = True
                async for response in stub.Watch(pb.WatchRequest()):
                    wait = BACKOFF_S[0]
                    if first or response.table.version > self._table.version:
                        await self._take(response.table, address)
                    first = False
                _log.info("the controller ended the stream")
            except aio.AioRpcError as error:
                _log.warning("the controller at %s is lost: %s", self.controller.addresses, error.details())
            except Exception as error:
                _log.warning("the controller is not found: %s", error)
            await asyncio.sleep(wait)
            wait = min(2 * wait, longest)

    async def _take(self, table: pb.RoutingTable, controller: str) -> None:
        self._table = table
        self._on_table(table)
        self._news.set()
        self._news = asyncio.Event()
        await self._channels.keep(_addresses(table) | self._lingering() | {controller})


def _addresses(table: pb.RoutingTable) -> set[str]:
    found = {address for model in table.models for address in model.addresses}
    for gallery in table.galleries:
        found.update(address for shard in gallery.shards for address in shard.addresses)
        if gallery.writer:
            found.add(gallery.writer)
    return found
