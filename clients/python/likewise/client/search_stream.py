"""Searches as messages of a stream: see `likewise.message_stream`."""

from collections.abc import Callable
from typing import Any, Final

from google.protobuf.message import Message

from likewise.client.errors import too_late
from likewise.client.rpc import SEARCH, Call
from likewise.message_stream import MessageStream
from likewise.v1 import search_service_pb2 as pb

MOST: Final = 8
"""Searches that one stream carries at a time; others are calls, which go to all of several servers in turn. A server
reads no further with 32 in work."""

AGE_S: Final = 60.0


class SearchStream:
    """Carries the searches of one client.

    Args:
        connect: Makes the gRPC call, with nothing sent yet.
        serialise: Bytes of a message, or a refusal of it.
    """

    def __init__(self, connect: Callable[[], Any], serialise: Callable[[Message], bytes]) -> None:
        self._serialise = serialise
        self._stream: MessageStream[pb.StreamSearchResponse] = MessageStream(connect, _withdraw, most=MOST, age_s=AGE_S)

    @property
    def ready(self) -> bool:
        """See `MessageStream.ready`."""
        return self._stream.ready

    async def ask(self, call: Call[Any], timeout_s: float | None) -> pb.StreamSearchResponse | None:
        """The answer to a Search or a SearchVectors, see `MessageStream.ask`.

        Raises:
            DeadlineExceeded: After the timeout.
            MessageTooLarge: If it does not fit one message.
        """

        def pack(number: int) -> bytes:
            return self._serialise(_message(number, call, timeout_s))

        return await self._stream.ask(pack, timeout_s, lambda: too_late(call.request_id))

    async def close(self) -> None:
        """See `MessageStream.close`."""
        await self._stream.close()


def _message(number: int, call: Call[Any], timeout_s: float | None) -> pb.StreamSearchRequest:
    message = pb.StreamSearchRequest(correlation_id=number)
    if timeout_s is not None:
        message.timeout_us = max(1, round(timeout_s * 1e6))
    request: Any = call.request
    if call.rpc is SEARCH:
        message.request.CopyFrom(request)
        message.request.request_id = call.request_id
    else:
        message.vectors.CopyFrom(request)
        message.vectors.search.request_id = call.request_id
    return message


def _withdraw(number: int) -> bytes:
    return pb.StreamSearchRequest(correlation_id=number, cancel=True).SerializeToString()
