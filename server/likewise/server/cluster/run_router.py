"""`likewise serve --role router`: a router on its own, knowing a cluster by its controller's address. No Ray here."""

import asyncio
from typing import Final

from likewise.server.app import Server, StartupError
from likewise.server.cluster.router import Routing
from likewise.server.embedded import server_options
from likewise.server.settings import Settings

CONNECT_S: Final = 15.0
"""Longest wait for the controller's first word at the start; later it is waited for as long as it takes."""

PARTS_S: Final = 300.0
"""Longest wait for the parts that it lists to be up."""


def router(settings: Settings, controller: str, *, connect_s: float = CONNECT_S, parts_s: float = PARTS_S) -> Server:
    """A server without models, shards and writers of its own, not started yet. Make it inside the loop that runs it.

    Any number of them may follow one controller. They keep serving while it restarts.

    Args:
        settings: What concerns a router of them.
        controller: host:port of the controller.
        connect_s: Longest wait for it at the start.
        parts_s: Longest wait for the parts.
    """

    async def resolve() -> str:
        return controller

    routing = Routing(resolve)
    return Server(
        server_options(settings),
        models=routing.models,
        galleries=routing.galleries,
        parts=(_Followed(routing, controller, connect_s=connect_s, parts_s=parts_s),),
        versions=routing.models,
    )


class _Followed:
    """The routing table as something that a server opens before it serves."""

    def __init__(self, routing: Routing, controller: str, *, connect_s: float, parts_s: float) -> None:
        self._routing = routing
        self._controller = controller
        self._connect_s = connect_s
        self._parts_s = parts_s

    async def open(self) -> None:
        try:
            await self._routing.connect(timeout_s=self._connect_s)
        except TimeoutError as error:
            raise StartupError(
                f"no controller answers at {self._controller} for {self._connect_s:g} s; its address is in the log of "
                "`likewise serve --ray`, --controller-port there sets its port"
            ) from error
        try:
            async with asyncio.timeout(self._parts_s):
                await self._routing.complete()
        except TimeoutError as error:
            raise StartupError(f"the cluster's parts are not up after {self._parts_s:.0f} s") from error

    async def close(self) -> None:
        await self._routing.close()
