"""Channels and servers of the data plane, and where a part is served at the moment."""

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from google.protobuf.message import Message
from grpc import StatusCode, aio

from likewise.server.remote import deadlines, statuses
from likewise.shards.protocols import Unavailable
from likewise.wire import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    Context = aio.ServicerContext[Any, Any]
else:
    Context = aio.ServicerContext

StubT = TypeVar("StubT")
ReplyT = TypeVar("ReplyT", bound=Message)

MAX_REQUEST_BYTES: Final = 160 << 20
"""Largest request between our own parts: a public message of float16 vectors doubles on its way to the writer."""

MAX_CONCURRENT_CALLS: Final = 2_048
"""Calls one endpoint takes at a time; the next is answered RESOURCE_EXHAUSTED. Batchers behind it have lower bounds."""

CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_send_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),  # parts of one cluster never talk through an outward proxy
    ("grpc.enable_retries", 0),  # the routing table, not the channel, knows where to go instead
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 15_000),  # notices a peer that vanished without closing its sockets
    ("grpc.keepalive_timeout_ms", 5_000),
)

SERVER_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # accepts the channels' keepalive
)

_log = logging.getLogger(__name__)


class Channels:
    """One channel an address, shared by every stub of the process and opened on first use."""

    def __init__(self) -> None:
        self._open: dict[str, aio.Channel] = {}

    def get(self, address: str) -> aio.Channel:
        """The channel to host:port."""
        channel = self._open.get(address)
        if channel is None:
            channel = self._open[address] = aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        return channel

    async def keep(self, addresses: set[str]) -> None:
        """Close the channels to all other addresses; `Route.call` takes calls on them to another replica."""
        for address in self._open.keys() - addresses:
            await self._open.pop(address).close()

    async def close(self) -> None:
        """Close every channel."""
        await self.keep(set())


class Route(Generic[StubT]):
    """Where one part is served now: the addresses of its replicas that are up.

    Stubs keep their route for life; whoever follows the routing table moves it. A call goes to the replicas in turn and
    on to the next one when a replica cannot be reached.

    Attributes:
        what: The part's name for people, as errors say it: "shard 1 of gallery 'shoes'".
    """

    def __init__(
        self,
        what: str,
        channels: Channels,
        make_stub: Callable[[aio.Channel], StubT],
        *,
        addresses: Sequence[str] = (),
    ) -> None:
        self.what = what
        self._channels = channels
        self._make_stub = make_stub
        self._stubs: list[tuple[str, StubT]] = []
        self._turn = itertools.count()
        self._unreachable: set[str] = set()  # told in the log already
        self.move(addresses)

    @property
    def addresses(self) -> tuple[str, ...]:
        """host:port of each replica that is up."""
        return tuple(address for address, _ in self._stubs)

    def move(self, addresses: Sequence[str]) -> None:
        """Use these addresses from now on; running calls end where they are."""
        if tuple(addresses) != self.addresses:
            self._unreachable.clear()
            self._stubs = [(address, self._make_stub(self._channels.get(address))) for address in addresses]

    async def call(
        self,
        method: Callable[[StubT], Callable[..., Awaitable[ReplyT]]],
        request: Message,
        *,
        unavailable: type[Exception] = Unavailable,
    ) -> ReplyT:
        """Answer of the first replica that can be reached, within the deadline of the current call.

        Args:
            method: Picks the stub's method, for example `lambda stub: stub.Search`.
            request: What to send.
            unavailable: Error to raise when no replica can be reached.

        Raises:
            Exception: Whatever the other side raised, see `statuses.from_rpc`.
        """
        stubs = list(self._stubs)
        first = next(self._turn) % len(stubs) if stubs else 0
        for address, stub in stubs[first:] + stubs[:first]:
            try:
                return await method(stub)(request, timeout=deadlines.remaining_s())
            except aio.AioRpcError as error:
                if error.code() != StatusCode.UNAVAILABLE or statuses.is_ours(error):
                    failure = statuses.from_rpc(error, what=self.what, unavailable=unavailable)
                    raise failure from failure.__cause__ or error
                if address not in self._unreachable:
                    self._unreachable.add(address)
                    _log.warning("%s at %s cannot be reached: %s", self.what, address, error.details())
            except asyncio.CancelledError:
                # Closing a channel cancels its calls; only if this task itself was cancelled is it the caller's doing.
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                _log.info("%s at %s has moved while a call ran", self.what, address)
            except aio.UsageError as error:  # the follower closed the channel between the pick and the call
                _log.info("%s at %s has moved: %s", self.what, address, error)
        raise self._not_up(unavailable)

    async def stream(
        self,
        method: Callable[[StubT], Callable[..., AsyncIterable[ReplyT]]],
        request: Message,
        *,
        unavailable: type[Exception] = Unavailable,
    ) -> AsyncGenerator[ReplyT]:
        """Answers of one replica as they come, within the deadline of the current call.

        Whoever closes the generator cancels the call. Unlike `call`, it never goes on to another replica: what was
        begun may be half done.

        Args:
            method: Picks the stub's method, for example `lambda stub: stub.ExportGallery`.
            request: What to send.
            unavailable: Error to raise when the replica cannot be reached.

        Raises:
            Exception: Whatever the other side raised, see `statuses.from_rpc`.
        """
        stubs = self._stubs
        if not stubs:
            raise self._not_up(unavailable)
        address, stub = stubs[next(self._turn) % len(stubs)]
        answers: Any = None
        try:
            answers = method(stub)(request, timeout=deadlines.remaining_s())
            async for answer in answers:
                yield answer
        except aio.AioRpcError as error:
            failure = statuses.from_rpc(error, what=self.what, unavailable=unavailable)
            raise failure from failure.__cause__ or error
        except asyncio.CancelledError:
            task = asyncio.current_task()  # as in `call`
            if task is None or task.cancelling():
                raise
            raise unavailable(f"{self.what} at {address} has moved while a call ran") from None
        except aio.UsageError as error:
            raise self._not_up(unavailable) from error
        finally:
            if answers is not None:
                answers.cancel()

    def _not_up(self, unavailable: type[Exception]) -> Exception:
        return unavailable(f"{self.what} is not up: it starts, restarts or is gone")


class Endpoint:
    """A small gRPC server around one or a few parts.

    Args:
        host: Interface to listen on, also the host part of the address told to others.
        port: To listen on; 0 for any free one.
    """

    def __init__(self, host: str, port: int = 0) -> None:
        self._host = host
        self._port = port
        self._bound = False
        self.server = aio.server(
            interceptors=(statuses.StatusInterceptor(),),
            options=SERVER_OPTIONS,
            maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,
        )

    async def start(self) -> str:
        """Listen and serve; returns host:port. Register servicers with `server` before.

        Raises:
            OSError: If the port is taken, and `bind` was not called before.
        """
        self.bind()
        await self.server.start()
        return f"{self._host}:{self._port}"

    def bind(self) -> None:
        """Take the port without serving yet; nothing if it is taken already.

        Raises:
            OSError: If another process has it.
        """
        if self._bound:
            return
        try:
            self._port = self.server.add_insecure_port(f"{self._host}:{self._port}")
        except RuntimeError as error:
            raise OSError(f"port {self._port} of {self._host} cannot be listened on: {error}") from error
        self._bound = True

    async def stop(self, *, grace_s: float) -> None:
        """Take no new calls, give running ones `grace_s` seconds and end."""
        await self.server.stop(grace_s)
