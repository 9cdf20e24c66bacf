"""Calls that come as messages of a stream: each is admitted, bounded, counted and logged as one that came by itself."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from google.rpc import status_pb2
from grpc import StatusCode

from likewise.server import validate
from likewise.server.admission import Admission
from likewise.server.calls import Call, Method
from likewise.server.time_limit import within

T = TypeVar("T")

_CODES: Final = {code.value[0]: code.name for code in StatusCode}
_OK: Final = StatusCode.OK.name  # looked up once: Python takes several calls for the name of a member
_CANCELLED: Final = StatusCode.CANCELLED.name


class MessageCalls:
    """Those of one method.

    Args:
        method: What they are counted as.
        admit: Raises a `ServiceError` while calls are not to be taken (loading, draining).
        admission: Counts the calls in progress.
    """

    def __init__(self, method: Method, *, admit: Callable[[], None], admission: Admission) -> None:
        self._method = method
        self._admit = admit
        self._admission = admission

    async def answer(
        self, work: Callable[[], Coroutine[Any, Any, T]], *, request_id: str, timeout_s: float | None
    ) -> T | status_pb2.Status:
        """The answer to one message, or the status of what it failed with; in a task of its own.

        Args:
            work: Makes the answer.
            request_id: The caller's, unchecked; empty for none.
            timeout_s: Until the message's deadline; None without one.
        """
        call = Call(self._method, "", timeout_s)
        code, admitted = _CANCELLED, False
        try:
            if request_id:
                call.record.request_id = validate.request_id(request_id)
            self._admit()
            self._admission.enter(timeout_s, call.started)
            admitted = True
            answer = await within(timeout_s, work())
            code = _OK
            return answer
        except (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a Rust library is no `Exception`
            status = call.refusal(error)
            code = _CODES[status.code]
            return status
        finally:
            if code == _OK:
                # When the answer is on its way: nobody has to wait for what is counted of it.
                asyncio.get_running_loop().call_soon(call.ended, code)
            else:
                call.ended(code)
            if admitted:
                self._admission.leave(time.perf_counter(), answered=code == _OK)
