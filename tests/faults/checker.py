"""Callers that go round all rpcs under faults, and what is held against each answer.

A `Load` runs a few callers. Each goes through every checker of `rpcs` again and again; a checker makes one call and
compares its answer with the ledger. What a fault may cost is an error of `TOLERATED`, within the call's deadline.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from tests.faults.ledger import Ledger

from likewise.client import (
    Cancelled,
    Client,
    DeadlineExceeded,
    Gallery,
    LikewiseError,
    ResourceExhausted,
    Unavailable,
)

TOLERATED: Final = (Unavailable, DeadlineExceeded, ResourceExhausted, Cancelled)
"""Errors that a fault may cause; any other one is a violation."""

TIMEOUT_S: Final = 4.0
"""Deadline of every call of a load."""

GRACE_S: Final = 10.0
"""A call may outlive its deadline by this much: what a starved test process needs to notice, not the server."""


class Violation(AssertionError):
    """An answer that must not be."""


@dataclass(slots=True)
class Caller:
    """What a checker is given.

    Attributes:
        number: Of the caller; it alone writes the items whose ids `own` gives.
        client: Connection, shared.
        channel: The same for calls that the SDK does not make, streams of one message.
        gallery: Handle of the gallery under load, shared: reads see all writes made through it.
        ledger: What may be there.
        rng: Of this caller.
    """

    number: int
    client: Client
    channel: grpc.Channel
    gallery: Gallery
    ledger: Ledger
    rng: random.Random

    def own(self, kind: str, count: int = 40) -> list[str]:
        """Ids that only this caller writes, and only its checker of that kind."""
        return [f"{kind}-{self.number}-{i:02d}" for i in range(count)]


Checker = Callable[[Caller], None]


@dataclass(slots=True)
class RpcRecord:
    """What became of one rpc's calls; times are monotonic seconds."""

    answered: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    worst_s: float = 0.0
    began_last_answered: float = 0.0


class Load:
    """Callers of one gallery; a context manager that ends them and raises what they found.

    Args:
        address: Of the server under test; it stays the same through restarts.
        gallery: Name of the gallery under load.
        checkers: By rpc.
        seed: Of all choices.
        callers: Threads.
    """

    def __init__(
        self, address: str, gallery: str, checkers: Mapping[str, Checker], *, seed: int, callers: int = 4
    ) -> None:
        self.ledger = ledger = Ledger()
        self.client = client = Client(address, timeout=TIMEOUT_S)
        self.records = {rpc: RpcRecord() for rpc in checkers}
        self.violations: list[str] = []
        self.recoveries: dict[str, float] = {}
        self._checkers = dict(checkers)
        self._news = threading.Condition()
        self._ending = threading.Event()
        self._channel = grpc.insecure_channel(address)
        handle = client.gallery(gallery)
        self.callers = [
            Caller(number, client, self._channel, handle, ledger, random.Random(seed * 1_000 + number))
            for number in range(callers)
        ]
        self._threads = [threading.Thread(target=self._run, args=(caller,), daemon=True) for caller in self.callers]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S * 5 + GRACE_S)
        if kind is None:
            assert not any(thread.is_alive() for thread in self._threads), "a call does not come back"
            self.raise_violations()

    def close(self) -> None:
        """End the connections."""
        self.client.close()
        self._channel.close()

    def raise_violations(self) -> None:
        """Raise what was found so far.

        Raises:
            Violation: If anything was.
        """
        if self.violations:
            raise Violation(f"{len(self.violations)} violations, the first of them:\n" + "\n".join(self.violations[:5]))

    def wait_answered(self, since: float, limit_s: float, *, only: Sequence[str] = ()) -> float:
        """Wait until every rpc (or those of `only`) has an answer to a call begun after `since`; seconds from then."""
        wanted = [self.records[rpc] for rpc in only or self.records]
        with self._news:
            done = self._news.wait_for(
                lambda: bool(self.violations) or all(record.began_last_answered > since for record in wanted), limit_s
            )
        self.raise_violations()
        missing = [rpc for rpc, record in self.records.items() if record.began_last_answered <= since]
        assert done, f"no answer after {limit_s:.0f} s to {missing}; errors so far {self.errors()}"
        return time.monotonic() - since

    def recovered(self, fault: str, since: float, limit_s: float) -> float:
        """`wait_answered` after a fault, noted as its recovery."""
        took = self.wait_answered(since, limit_s)
        self.recoveries[fault] = max(took, self.recoveries.get(fault, 0.0))
        return took

    def wait_error(self, since: float, limit_s: float) -> None:
        """Wait until the fault of `since` has cost somebody a call."""
        before = sum(self.errors().values())
        with self._news:
            assert self._news.wait_for(lambda: sum(self.errors().values()) > before, limit_s), "nobody noticed"

    def errors(self) -> dict[str, int]:
        """Errors of all rpcs by kind."""
        found: Counter[str] = Counter()
        for record in self.records.values():
            found += record.errors
        return dict(sorted(found.items()))

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            "operations": sum(record.answered + sum(record.errors.values()) for record in self.records.values()),
            "answered": {rpc: record.answered for rpc, record in sorted(self.records.items())},
            "errors": self.errors(),
            "worst_check_s": round(max(record.worst_s for record in self.records.values()), 2),
            "acknowledged_writes": self.ledger.acknowledged,
            "writes_in_doubt": self.ledger.in_doubt,
            "lost": len(self.violations),
            "recovery_s": {fault: round(took, 2) for fault, took in self.recoveries.items()},
            "worst_recovery_s": round(max(self.recoveries.values(), default=0.0), 2),
        }

    def _run(self, caller: Caller) -> None:
        while not self._ending.is_set():
            rpcs = list(self._checkers)
            caller.rng.shuffle(rpcs)
            for rpc in rpcs:
                if self._ending.is_set():
                    return
                self._call(rpc, caller)

    def _call(self, rpc: str, caller: Caller) -> None:
        began = time.monotonic()
        error: str | None = None
        violation: str | None = None
        try:
            self._checkers[rpc](caller)
        except TOLERATED as failure:
            error = type(failure).__name__
        except (LikewiseError, AssertionError, ValueError, LookupError) as failure:
            violation = f"{rpc}: {type(failure).__name__}: {failure}"
        except BaseException as failure:
            violation = f"{rpc}: unforeseen {type(failure).__name__}: {failure}"
        took = time.monotonic() - began
        with self._news:
            record = self.records[rpc]
            record.worst_s = max(record.worst_s, took)
            if violation is not None:
                self.violations.append(violation)
            elif error is not None:
                record.errors[error] += 1
                # A checker makes up to five calls in a row.
                if took > 5 * TIMEOUT_S + GRACE_S:
                    self.violations.append(f"{rpc}: {error} after {took:.1f} s, the deadline is {TIMEOUT_S:.0f} s")
            else:
                record.answered += 1
                record.began_last_answered = began
            self._news.notify_all()
