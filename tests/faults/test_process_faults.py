"""A server that is killed, frozen, ended and cut off under load, with every rpc checked all the while."""

import socket
import time
from collections import Counter
from pathlib import Path
from typing import Final

import pytest
from tests.faults import gallery_rpcs, model_rpcs, report, rpcs
from tests.faults.checker import Load
from tests.faults.options import OPTIONS
from tests.faults.proxy import Proxy
from tests.integration.processes import ServerProcess

from likewise.client import Client

RECOVERY_S: Final = 120.0
"""Bound of a recovery, start of the process included; a busy machine takes a few seconds."""

ROUNDS: Final = 12 if OPTIONS.long else 1
DELAY_S: Final = 0.1


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_galleries(address: str) -> list[str]:
    """The gallery under load and one with an encoder, whose answer to "a red circle" is given."""
    with Client(address) as client:
        client.create_gallery(rpcs.GALLERY, dim=rpcs.DIM, attributes=rpcs.ATTRIBUTES, shards=2)
        gallery = client.create_gallery("pictures", encoder="shapes")
        texts = [f"a {colour} {shape}" for colour in ("red", "blue", "green") for shape in ("circle", "square", "star")]
        gallery.upsert([text.replace(" ", "-") for text in texts], texts=texts)
        return gallery.search(text="a red circle", k=3).ids


def inflict(fault: str, server: ServerProcess, proxy: Proxy, load: Load) -> None:
    """Make a fault and end it again."""
    since = time.monotonic()
    match fault:
        case "SIGKILL":
            server.kill()
            server.start()
        case "SIGSTOP":
            server.freeze()
            load.wait_error(since, RECOVERY_S)
            server.thaw()
        case "SIGTERM":
            assert server.terminate() == 0
            server.start()
        case "connections cut":
            proxy.cut()
        case "network delay":
            proxy.delay(DELAY_S)
            load.wait_answered(since, RECOVERY_S)
            proxy.delay(0.0)
        case "network silent":
            proxy.swallow()
            load.wait_error(since, RECOVERY_S)
            proxy.flow()


FAULTS: Final = ("SIGKILL", "SIGSTOP", "SIGTERM", "connections cut", "network delay", "network silent")


@pytest.mark.slow
def test_a_server_killed_frozen_ended_and_cut_off_under_load_keeps_its_promises(tmp_path: Path) -> None:
    port = free_port()
    families = model_rpcs.write_families(tmp_path / "models")
    options = ["--port", str(port), "--models", str(families), "--log-level", "ERROR", "--drain-grace-s", "2"]
    server = ServerProcess(tmp_path / "store", options)
    server.start()
    faults: Counter[str] = Counter()
    with Proxy(server.address) as proxy:
        try:
            checkers = rpcs.all_rpcs(make_galleries(server.address)) | gallery_rpcs.GALLERIES | model_rpcs.checkers()
            with Client(server.address) as client:
                model_rpcs.make_galleries(client)
            load = Load(proxy.address, rpcs.GALLERY, checkers, seed=OPTIONS.seed)
            try:
                rpcs.write_static(load.callers[0])
                with load:
                    load.wait_answered(time.monotonic(), RECOVERY_S)
                    for _ in range(ROUNDS):
                        for fault in FAULTS:
                            since = time.monotonic()
                            inflict(fault, server, proxy, load)
                            faults[fault] += 1
                            load.recovered(fault, since, RECOVERY_S)
                assert rpcs.verify(load.callers[0]) >= rpcs.STATIC
            finally:
                section = {"seed": OPTIONS.seed, **load.as_json(), "faults": dict(faults)}
                report.add("process and network faults, one process", section)
                load.close()
        finally:
            server.kill()
