"""One call from when it is read to its status: what is noted, counted and measured of it."""

import random
import time
from typing import Any

from google.rpc import status_pb2
from grpc import StatusCode

from likewise.server import access_log, failures
from likewise.server.access_log import CallRecord
from likewise.server.admission import TooManyCalls
from likewise.server.metrics import Metrics
from likewise.server.remote import deadlines


class Method:
    """What all calls of one method have in common, looked up once.

    Args:
        name: "likewise.v1.SearchService/Search".
        metrics: Where calls are counted.
        always_admitted: Whether its calls are taken in every state of the server.
        counted: Whether they count among those in progress, whose number is bounded.
    """

    def __init__(self, name: str, metrics: Metrics, *, always_admitted: bool, counted: bool) -> None:
        self.name = name
        self.always_admitted = always_admitted
        self.counted = counted
        self.rejected = metrics.rejected
        self.in_flight = 0
        metrics.rpc_in_flight.labels(name).set_function(lambda: self.in_flight)
        self.duration = metrics.rpc_duration.labels(name)
        self._requests = metrics.rpc_requests
        self._by_code: dict[str, Any] = {}

    def ended(self, code: str, seconds: float) -> None:
        """Count a call that ended with this status after so long."""
        self.in_flight -= 1
        self.duration.observe(seconds)
        counter = self._by_code.get(code)
        if counter is None:
            counter = self._by_code[code] = self._requests.labels(self.name, code)
        counter.inc()


class Call:
    """One call in progress; the task that makes it runs it.

    Args:
        method: Of which method.
        request_id: The caller's; made here if it is empty.
        remaining_s: Until its deadline; None without one.
    """

    def __init__(self, method: Method, request_id: str, remaining_s: float | None) -> None:
        self.method = method
        self.started = time.perf_counter()
        # Unique enough to find a line in a log, and nobody relies on its being secret.
        self.record = CallRecord(request_id=request_id or f"{random.getrandbits(128):032x}", method=method.name)
        self.remaining_s = remaining_s
        deadlines.set_deadline(remaining_s)
        access_log.begin(self.record)
        method.in_flight += 1

    def refusal(self, error: BaseException) -> status_pb2.Status:
        """The status of an error that ends the call, which is noted."""
        record = self.record
        status = error.status if isinstance(error, TooManyCalls) else failures.status_of(error, what=record.method)
        service_error = failures.known(error)
        record.error = service_error.reason if service_error else "INTERNAL"
        if status.code == StatusCode.RESOURCE_EXHAUSTED.value[0]:
            self.method.rejected.labels(record.error).inc()
        return status

    def ended(self, code: str) -> None:
        """Count the call, which ended with this status, and write its line."""
        record = self.record
        record.code = code
        seconds = time.perf_counter() - self.started
        record.duration_ms = seconds * 1e3
        self.method.ended(code, seconds)
        access_log.write(record)
