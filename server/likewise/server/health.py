"""grpc.health.v1: whether the server takes calls, once or as it changes.

Written here because the servicer of grpcio-health-checking forgets the other watchers of a service when one of them
leaves, and because its streams outlive the drain they are to announce.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from likewise.server.errors import NotFound, Overloaded

MAX_WATCHERS = 1024
"""Streams at a time: a probe that leaks them must not exhaust the server."""


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The states of the server ("") and of each of its services.

    Args:
        services: Full names, "likewise.v1.SearchService". All of them, and "", start NOT_SERVING.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._states = dict.fromkeys(("", *services), health_pb2.HealthCheckResponse.NOT_SERVING)
        self._changed = asyncio.Condition()
        self._closed = False
        self._watchers = 0

    async def set_serving(self, serving: bool) -> None:
        """Give every service this state and tell the watchers."""
        state = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        async with self._changed:
            self._states = dict.fromkeys(self._states, state)
            self._changed.notify_all()

    async def close(self) -> None:
        """Tell the watchers NOT_SERVING and end their streams."""
        self._closed = True
        await self.set_serving(False)

    async def Check(self, request: Any, context: Any) -> Any:
        """The state of one service; NOT_FOUND for one that is not there, as the protocol says."""
        state = self._states.get(request.service)
        if state is None:
            raise NotFound(
                f"no service {request.service!r}, there are {sorted(self._states)}", reason="UNKNOWN_SERVICE"
            )
        return health_pb2.HealthCheckResponse(status=state)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """The state of one service now and at each change, until the server drains."""
        if self._watchers >= MAX_WATCHERS:
            raise Overloaded(f"{MAX_WATCHERS} health watches are open, the limit", retry_after_s=1.0)
        self._watchers += 1
        try:
            told: int | None = None
            while True:
                async with self._changed:
                    while not self._closed and self._state(request.service) == told:
                        await self._changed.wait()
                    state, closed = self._state(request.service), self._closed
                if state != told:
                    told = state
                    yield health_pb2.HealthCheckResponse(status=state)
                if closed:
                    return
        finally:
            self._watchers -= 1

    def _state(self, service: str) -> int:
        state: int = self._states.get(service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        return state
