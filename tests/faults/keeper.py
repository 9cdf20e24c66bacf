"""One embedded server that is ended and started again under everybody who uses it."""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tests.integration.processes import START_SECONDS, ServerProcess

from likewise.client import Client

WAIT_S: Final = 2 * START_SECONDS


@dataclass(slots=True)
class Outage:
    """One restart; times are monotonic seconds.

    Attributes:
        how: "kill" or "terminate".
        began: When the signal was sent.
        up: When the server served again.
        over: When the last caller had verified its gallery again, so far.
    """

    how: str
    began: float
    up: float
    over: float


class Keeper:
    """A server and its current client; several threads may use both, and restart it.

    Args:
        store: Folder of the store.
        arguments: More of `likewise serve`'s.

    Attributes:
        outages: All restarts, in order; that of generation g is at g - 1.
    """

    def __init__(self, store: Path, arguments: Sequence[str] = ()) -> None:
        self.outages: list[Outage] = []
        self._server = ServerProcess(store, ["--log-level", "WARNING", *arguments])
        self._one_restart = threading.Lock()
        self._changed = threading.Condition()
        self._generation = 0
        self._up = False
        self._client: Client | None = None
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Start it for the first time."""
        self._server.start()
        with self._changed:
            self._client, self._up = Client(self._server.address), True

    def current(self) -> tuple[int, Client]:
        """The server's generation and a client of it; waits while there is none."""
        with self._changed:
            there = self._changed.wait_for(lambda: self._up or self._failure is not None, WAIT_S)
            if self._failure is not None:
                raise AssertionError("the server did not come back") from self._failure
            assert there, f"the server was not back after {WAIT_S:.0f} s"
            assert self._client is not None
            return self._generation, self._client

    def is_over(self, generation: int) -> bool:
        """Whether the server of that generation has ended or is ending, so that its errors are to be expected."""
        with self._changed:
            return not self._up or generation != self._generation

    def restart(self, how: Literal["kill", "terminate"]) -> None:
        """End the server by SIGKILL or SIGTERM, while others call it, and start it again on the same store."""
        with self._one_restart:
            with self._changed:
                self._up = False
                client = self._client
            began = time.monotonic()
            try:
                if how == "kill":
                    self._server.kill()
                else:
                    code = self._server.terminate()
                    assert code == 0, f"the server ended with {code} after SIGTERM:\n" + "\n".join(self._server.log)
                self._server.start()
            except BaseException as failure:
                with self._changed:
                    self._failure = failure
                    self._changed.notify_all()
                raise
            if client is not None:
                client.close()
            with self._changed:
                self._client = Client(self._server.address)
                self._generation += 1
                self._up = True
                now = time.monotonic()
                self.outages.append(Outage(how, began, now, now))
                self._changed.notify_all()

    def recovered(self, generation: int) -> None:
        """A caller has found all it had written in that generation of the server."""
        if generation:
            outage = self.outages[generation - 1]
            outage.over = max(outage.over, time.monotonic())

    def faults(self) -> dict[str, int]:
        """Restarts by kind."""
        return dict(sorted(Counter(outage.how for outage in self.outages).items()))

    def worst_recovery_s(self) -> float:
        """Longest time from the signal until the last caller had verified its gallery again."""
        return max((outage.over - outage.began for outage in self.outages), default=0.0)

    def worst_start_s(self) -> float:
        """Longest time from the signal until the server served again."""
        return max((outage.up - outage.began for outage in self.outages), default=0.0)

    def log(self) -> list[str]:
        """What the server printed, all generations together."""
        return self._server.log

    def close(self) -> None:
        """End the server for good."""
        if self._client is not None:
            self._client.close()
        self._server.kill()
