# ruff: noqa: ASYNC109 - these timeouts are gRPC deadlines, which the server sees too; asyncio.timeout is local
"""How calls go over a channel: `Transport` for threads, `AsyncTransport` for asyncio, with the same methods."""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from typing import Any, Final, TypeVar

import grpc
import grpc.aio

from likewise.client.channel import ChannelConfig
from likewise.client.errors import REQUEST_ID_KEY, Cancelled, ClientClosed, LikewiseError, Unavailable, from_status
from likewise.client.rpc import SEARCH, STREAM_SEARCH, Call, Rpc, read_answer, translated
from likewise.client.search_batching import AsyncSearchBatcher
from likewise.client.search_batching_threads import SearchBatcher
from likewise.client.search_stream import SearchStream

K = TypeVar("K")
T = TypeVar("T")

IN_FLIGHT: Final = 4
"""Calls of one long operation under way at once: the next is there when a commit ends, and memory stays small."""

_CLOSE_GRACE_S: Final = 0.0  # closing gives up what is under way, in both worlds


class Transport:
    """A channel for threads.

    Attributes:
        config: Where to and how.
        searches: Puts searches together that come at the same time.
    """

    def __init__(self, config: ChannelConfig) -> None:
        self.config = config
        options = config.channel_options()
        if config.credentials is None:
            self._channel = grpc.insecure_channel(config.target, options=options)
        else:
            self._channel = grpc.secure_channel(config.target, config.credentials, options=options)
        self._methods: dict[str, grpc.UnaryUnaryMultiCallable[bytes, Any]] = {}
        self._lock = threading.Lock()
        self._closed = False
        self.searches = SearchBatcher(self.call, config)

    def call(self, call: Call[T], timeout: float | None) -> T:
        """One call."""
        data, deadline_s, metadata = _prepared(self.config, call, timeout)
        method = self._method(call.rpc)
        try:
            return read_answer(call, method(data, timeout=deadline_s, metadata=metadata))
        except grpc.RpcError as error:
            raise self._error(error, call) from error
        except ValueError as error:
            raise self._closed_meanwhile(error) from error

    def stream(self, call: Call[T], timeout: float | None) -> Iterator[T]:
        """One call with many answers, as they come; given up when the iterator is closed."""
        data, deadline_s, metadata = _prepared(self.config, call, timeout)
        if self._closed:
            raise ClientClosed
        try:
            method: Any = self._channel.unary_stream(call.rpc.path, None, call.rpc.reply.FromString)
            answers = method(data, timeout=deadline_s, metadata=metadata)
        except ValueError as error:
            raise self._closed_meanwhile(error) from error
        try:
            for message in answers:
                yield read_answer(call, message)
        except grpc.RpcError as error:
            raise self._error(error, call) from error
        finally:
            answers.cancel()

    def gather(self, calls: Iterator[Call[T]], timeout: float | None) -> Iterator[T]:
        """Several calls, a few under way at once, results in order; the first error is raised."""
        for _, outcome in self.pipeline(((None, call) for call in calls), timeout):
            if isinstance(outcome, LikewiseError):
                raise outcome
            yield outcome

    def pipeline(
        self, source: Iterable[tuple[K, Call[T]]], timeout: float | None
    ) -> Iterator[tuple[K, T | LikewiseError]]:
        """Calls as they come, a few under way at once, outcomes in order; those left when it is closed are given up."""
        pending: deque[tuple[K, Call[T], Any]] = deque()
        try:
            for key, call in source:
                pending.append((key, call, self._started(call, timeout)))
                if len(pending) >= IN_FLIGHT:
                    key, call, future = pending.popleft()
                    outcome = self._outcome(call, future)
                    yield key, outcome
            while pending:
                key, call, future = pending.popleft()
                outcome = self._outcome(call, future)
                yield key, outcome
        finally:
            for _, _, future in pending:
                if not isinstance(future, LikewiseError):
                    future.cancel()

    @property
    def closed(self) -> bool:
        """Whether the connection was ended here."""
        return self._closed

    def duplex(self, rpc: Rpc, requests: Iterator[bytes], *, metadata: Any) -> Any:
        """A call with a stream of messages each way: the iterator over the answers.

        Raises:
            ClientClosed: If the connection was ended.
        """
        if self._closed:
            raise ClientClosed
        try:
            method: Any = self._channel.stream_stream(rpc.path, None, rpc.reply.FromString)
            return method(requests, metadata=metadata)
        except ValueError as error:
            raise self._closed_meanwhile(error) from error

    def close(self) -> None:
        """End the connection; calls under way are given up."""
        self._closed = True
        self._channel.close()

    def _started(self, call: Call[Any], timeout: float | None) -> Any:
        """A future of the call, or the error that kept it from starting."""
        try:
            data, deadline_s, metadata = _prepared(self.config, call, timeout)
            return self._method(call.rpc).future(data, timeout=deadline_s, metadata=metadata)
        except LikewiseError as error:
            return error
        except ValueError as error:
            return self._closed_meanwhile(error)

    def _outcome(self, call: Call[T], future: Any) -> T | LikewiseError:
        if isinstance(future, LikewiseError):
            return future
        try:
            return read_answer(call, future.result())
        except grpc.FutureCancelledError as error:
            return _caused(ClientClosed() if self._closed else Cancelled("the call was given up"), error)
        except grpc.RpcError as error:
            return _caused(self._error(error, call), error)
        except LikewiseError as error:
            return error

    def _error(self, error: grpc.RpcError, call: Call[Any]) -> LikewiseError:
        return ClientClosed() if self._closed else translated(error, call.request_id, self.config.target)

    def _closed_meanwhile(self, error: ValueError) -> LikewiseError:
        # gRPC's word for a channel that was closed is a bare ValueError.
        if self._closed:
            return ClientClosed()
        raise error

    def _method(self, rpc: Rpc) -> "grpc.UnaryUnaryMultiCallable[bytes, Any]":
        with self._lock:
            if self._closed:
                raise ClientClosed
            method = self._methods.get(rpc.path)
            if method is None:
                method = self._channel.unary_unary(rpc.path, None, rpc.reply.FromString)
                self._methods[rpc.path] = method
            return method


class AsyncTransport:
    """A channel for one event loop, opened by the first call; attributes as of `Transport`."""

    def __init__(self, config: ChannelConfig) -> None:
        self.config = config
        self._channel: grpc.aio.Channel | None = None
        self._methods: dict[str, grpc.aio.UnaryUnaryMultiCallable[bytes, Any]] = {}
        self._closed = False
        self._searching = SearchStream(self._search_stream, config.serialise)
        self.searches = AsyncSearchBatcher(self.search, config)

    async def call(self, call: Call[T], timeout: float | None) -> T:
        """One call."""
        data, deadline_s, metadata = _prepared(self.config, call, timeout)
        method = self._method(call.rpc)
        try:
            return read_answer(call, await method(data, timeout=deadline_s, metadata=metadata))
        except grpc.RpcError as error:
            raise (
                ClientClosed() if self._closed else translated(error, call.request_id, self.config.target)
            ) from error
        except (grpc.aio.UsageError, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if self._closed and not (task and task.cancelling()):
                raise ClientClosed from error
            raise

    async def search(self, call: Call[T], timeout: float | None) -> T:
        """A Search or SearchVectors as a message of a stream; where there is none, or if it fails, as a call."""
        if self._closed or not self._searching.ready:
            return await self.call(call, timeout)
        deadline_s = self.config.deadline_s(timeout)
        began = time.monotonic()
        message = await self._searching.ask(call, deadline_s)
        if message is not None and message.HasField("error"):
            error = from_status(message.error, request_id=call.request_id)
            if not isinstance(error, Unavailable | Cancelled):
                raise error
        elif message is not None:
            return read_answer(call, message.response if call.rpc is SEARCH else message.vectors)
        # The stream is gone, or the server says what a call is tried again for.
        left_s = math.inf if deadline_s is None else max(deadline_s - (time.monotonic() - began), 0.001)
        return await self.call(call, left_s)

    async def stream(self, call: Call[T], timeout: float | None) -> AsyncGenerator[T]:
        """One call with many answers, as they come; given up when the generator is closed."""
        data, deadline_s, metadata = _prepared(self.config, call, timeout)
        if self._closed:
            raise ClientClosed
        method: Any = self._open().unary_stream(call.rpc.path, None, call.rpc.reply.FromString)
        answers = method(data, timeout=deadline_s, metadata=metadata)
        try:
            async for message in answers:
                yield read_answer(call, message)
        except grpc.RpcError as error:
            raise (
                ClientClosed() if self._closed else translated(error, call.request_id, self.config.target)
            ) from error
        except (grpc.aio.UsageError, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if self._closed and not (task and task.cancelling()):
                raise ClientClosed from error
            raise
        finally:
            answers.cancel()

    async def gather(self, calls: Iterator[Call[T]], timeout: float | None) -> AsyncGenerator[T]:
        """Several calls, a few under way at once, results in order; the first error is raised."""
        async for _, outcome in self.pipeline(_keyed(calls), timeout):
            if isinstance(outcome, LikewiseError):
                raise outcome
            yield outcome

    async def pipeline(
        self, source: AsyncIterator[tuple[K, Call[T]]], timeout: float | None
    ) -> AsyncGenerator[tuple[K, T | LikewiseError]]:
        """Calls as they come, a few under way at once, outcomes in order; those left when it is closed are given up."""
        pending: deque[tuple[K, asyncio.Task[T | LikewiseError]]] = deque()
        try:
            async for key, call in source:
                outcome = self._outcome(call, timeout)
                pending.append((key, asyncio.create_task(outcome)))
                if len(pending) >= IN_FLIGHT:
                    yield pending[0][0], await pending[0][1]
                    pending.popleft()
            while pending:
                yield pending[0][0], await pending[0][1]
                pending.popleft()
        finally:
            for _, task in pending:
                task.cancel()
            await asyncio.gather(*(task for _, task in pending), return_exceptions=True)

    @property
    def closed(self) -> bool:
        """Whether the connection was ended here."""
        return self._closed

    def duplex(self, rpc: Rpc, *, metadata: Any) -> Any:
        """A call with a stream of messages each way, to `write` bytes to and `read` answers from.

        Raises:
            ClientClosed: If the connection was ended.
        """
        if self._closed:
            raise ClientClosed
        method: Any = self._open().stream_stream(rpc.path, None, rpc.reply.FromString)
        return method(metadata=metadata)

    async def close(self) -> None:
        """End the connection; calls under way are given up."""
        self._closed = True
        await self._searching.close()
        if self._channel is not None:
            await self._channel.close(_CLOSE_GRACE_S)

    async def _outcome(self, call: Call[T], timeout: float | None) -> T | LikewiseError:
        try:
            return await self.call(call, timeout)
        except LikewiseError as error:
            return error

    def _search_stream(self) -> Any:
        return self.duplex(STREAM_SEARCH, metadata=self.config.metadata)

    def _method(self, rpc: Rpc) -> "grpc.aio.UnaryUnaryMultiCallable[bytes, Any]":
        if self._closed:
            raise ClientClosed
        method = self._methods.get(rpc.path)
        if method is None:
            method = self._open().unary_unary(rpc.path, None, rpc.reply.FromString)
            self._methods[rpc.path] = method
        return method

    def _open(self) -> grpc.aio.Channel:
        # A channel belongs to the loop that runs when it is made, so that it is made as late as possible.
        if self._channel is None:
            options = self.config.channel_options()
            if self.config.credentials is None:
                self._channel = grpc.aio.insecure_channel(self.config.target, options=options)
            else:
                self._channel = grpc.aio.secure_channel(self.config.target, self.config.credentials, options=options)
        return self._channel


def _prepared(
    config: ChannelConfig, call: Call[Any], timeout: float | None
) -> tuple[bytes, float | None, tuple[tuple[str, str | bytes], ...]]:
    metadata = (*config.metadata, (REQUEST_ID_KEY, call.request_id))
    return config.serialise(call.request), config.deadline_s(timeout), metadata


def _caused(error: LikewiseError, cause: BaseException) -> LikewiseError:
    error.__cause__ = cause
    return error


async def _keyed(calls: Iterator[Call[T]]) -> AsyncIterator[tuple[None, Call[T]]]:
    async for call in in_thread(calls):
        yield None, call


async def in_thread(source: Iterator[T]) -> AsyncIterator[T]:
    """An iterator that reads files or packs arrays, stepped in a thread so that the event loop goes on."""
    while (step := await asyncio.to_thread(next, source, None)) is not None:
        yield step
