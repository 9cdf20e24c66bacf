"""A server whose process is killed, frozen or ended under load, with every rpc checked all the while."""

import socket
import time
from pathlib import Path
from typing import Final

import pytest
from tests.faults import report, rpcs
from tests.faults.checker import Load
from tests.faults.options import OPTIONS
from tests.integration.processes import ServerProcess

from likewise.client import Client

RECOVERY_S: Final = 120.0
"""Bound of a recovery, start of the process included; a busy machine takes a few seconds."""

ROUNDS: Final = 12 if OPTIONS.long else 1


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pictures(client: Client) -> list[str]:
    """Make the gallery of `rpcs.text_search` and give what it answers."""
    gallery = client.create_gallery("pictures", encoder="shapes")
    texts = [f"a {colour} {shape}" for colour in ("red", "blue", "green") for shape in ("circle", "square", "star")]
    gallery.upsert([text.replace(" ", "-") for text in texts], texts=texts)
    return gallery.search(text="a red circle", k=3).ids


@pytest.mark.slow
def test_a_server_killed_frozen_and_ended_under_load_keeps_every_promise(tmp_path: Path) -> None:
    port = free_port()
    server = ServerProcess(tmp_path / "store", ["--port", str(port), "--log-level", "ERROR", "--drain-grace-s", "2"])
    server.start()
    load: Load | None = None
    faults: dict[str, int] = {}
    try:
        with Client(server.address) as client:
            checkers = {**rpcs.RPCS, "SearchService.Search with a text": rpcs.text_search("pictures", pictures(client))}
            client.create_gallery(rpcs.GALLERY, dim=rpcs.DIM, attributes=rpcs.ATTRIBUTES, shards=2)
        load = Load(server.address, rpcs.GALLERY, checkers, seed=OPTIONS.seed)
        rpcs.write_static(load.callers[0])
        with load:
            load.wait_answered(time.monotonic(), RECOVERY_S)
            for _ in range(ROUNDS):
                for fault in ("SIGKILL", "SIGSTOP", "SIGTERM"):
                    since = time.monotonic()
                    match fault:
                        case "SIGKILL":
                            server.kill()
                            server.start()
                        case "SIGSTOP":
                            server.freeze()
                            load.wait_error(since, RECOVERY_S)
                            server.thaw()
                        case _:
                            assert server.terminate() == 0
                            server.start()
                    faults[fault] = faults.get(fault, 0) + 1
                    load.recovered(fault, since, RECOVERY_S)
        assert rpcs.verify(load.callers[0]) >= rpcs.STATIC
    finally:
        if load is not None:
            report.add("process faults, embedded server", {**load.as_json(), "faults": faults, "seed": OPTIONS.seed})
            load.close()
        server.kill()
