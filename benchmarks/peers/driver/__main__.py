"""The driver process of one peer: `python -m benchmarks.peers.driver JOB.json`; see `protocol` for what is said."""

import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from benchmarks.peers.driver.loads import run
from benchmarks.peers.driver.pace import Pace
from benchmarks.peers.driver.protocol import F32, Adapter, Question, Rows, Setting, as_rows


def main(job: dict[str, Any], commands: IO[str], replies: IO[str]) -> None:
    """Answer commands until "stop" or the end of input.

    Args:
        job: "adapter", a module with `adapter(setting)`; "data", the folder of the .npy files; and a `Setting`.
        commands: One JSON object a line.
        replies: The same.
    """

    def reply(**fields: Any) -> None:
        print(json.dumps(fields), file=replies, flush=True)

    def attempt(work: Callable[[], dict[str, Any]]) -> bool:
        try:
            reply(ok=True, **work())
        except Exception as error:
            traceback.print_exc()
            reply(ok=False, error=f"{type(error).__name__}: {error}"[:2_000])
            return False
        return True

    data = Path(job["data"])
    made: list[Adapter] = []

    def start() -> dict[str, Any]:
        setting = Setting(Path(job["folder"]), int(job["threads"]), job["options"])
        made.append(importlib.import_module(job["adapter"]).adapter(setting))
        return {"versions": made[0].versions()}

    if not attempt(start):
        return
    peer = made[0]
    try:
        for line in commands:
            command = json.loads(line)
            if command["do"] == "stop":
                break
            work = {"load": _load, "ask": _ask}[command["do"]]
            attempt(lambda work=work, command=command: work(peer, data, command))  # type: ignore[misc]
    finally:
        peer.close()
    reply(ok=True)


def _load(peer: Adapter, data: Path, command: dict[str, Any]) -> dict[str, Any]:
    del command
    rows = Rows(*(np.load(data / f"{name}.npy") for name in ("base", "share", "cluster_share")))
    started = time.perf_counter()
    peer.load(rows)
    return {"seconds": time.perf_counter() - started}


def _ask(peer: Adapter, data: Path, command: dict[str, Any]) -> dict[str, Any]:
    asked = command["question"]
    queries: F32 = np.load(data / f"{asked['queries']}.npy")
    question = Question(queries, asked["k"], asked["below"], asked["params"], asked["batch"])
    seen = run(peer.prepare(question), Pace.of(command["pace"]), question.calls)
    np.savez(command["out"], latencies_s=np.asarray(seen.latencies_s), answers=as_rows(seen.answers, question))
    return {"wall_s": seen.wall_s, "in_time": seen.in_time, "offered": seen.offered}


if __name__ == "__main__":
    # Libraries print as they like; the conversation keeps the stdout it was started with to itself;
    # and a driver that is told to end stops what its peer has started on the way out.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    conversation = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    main(json.loads(Path(sys.argv[1]).read_text()), sys.stdin, conversation)
