"""A Ray cluster of which every kind of process is killed or frozen under load, with every rpc checked all the while."""

import os
import signal
import subprocess
import sysconfig
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest
from tests.faults import cluster_processes, gallery_rpcs, report, rpcs
from tests.faults.attack import wait_until
from tests.faults.checker import Load
from tests.faults.options import OPTIONS
from tests.faults.test_process_faults import free_port, make_galleries
from tests.integration.processes import ServerProcess

pytestmark = [pytest.mark.cluster, pytest.mark.long]

RECOVERY_S: Final = 180.0
"""Bound of a recovery; Ray starts a process in a second or two, on a busy machine in ten."""

START_S: Final = 120.0
RAY: Final = str(Path(sysconfig.get_path("scripts")) / "ray")
"""Ray's command in this environment, which need not be on the path."""
ROUNDS: Final = 5 if OPTIONS.long else 1


class RayNode:
    """One node of a cluster: a raylet and, for the head, the GCS; several may run on one machine.

    Args:
        mark: Of the cluster, see `cluster_processes`.
        folder: Ray's session folder; its path has to be short.
        head: Address of the head to join, None for a head.

    Attributes:
        address: Of the head.
        mark: Of the node's own processes.
    """

    def __init__(self, mark: str, folder: Path, head: str | None = None) -> None:
        port = free_port()
        self.address = head or f"127.0.0.1:{port}"
        self.mark = f"{mark}-{uuid.uuid4().hex[:6]}"
        where = ["--address", head] if head else ["--head", "--port", str(port), "--temp-dir", str(folder)]
        command = [RAY, "start", *where, "--node-ip-address", "127.0.0.1", "--num-cpus", "4", "--disable-usage-stats"]
        if not head:
            command += ["--include-dashboard", "false"]
        marks = {cluster_processes.MARK: mark, cluster_processes.NODE_MARK: self.mark, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "--object-store-memory", str(100 << 20)],
            env={**os.environ, **marks, "RAY_USAGE_STATS_ENABLED": "0"},
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def end(self) -> None:
        """SIGKILL for everything that runs on the node, as a machine that loses power."""
        cluster_processes.end_all(self.mark, variable=cluster_processes.NODE_MARK)

    def end_raylet(self) -> None:
        """SIGKILL for Ray's own process alone; what it started notices and ends."""
        processes = cluster_processes.marked(self.mark, variable=cluster_processes.NODE_MARK)
        (raylet,) = [pid for pid, line in processes.items() if "/raylet/raylet" in line.split(" ", 1)[0]]
        os.kill(raylet, signal.SIGKILL)


@contextmanager
def cluster() -> Iterator[tuple[str, RayNode, Path]]:
    """A head node, its mark and a folder; every process of the mark is ended afterwards."""
    mark = uuid.uuid4().hex
    temporary = TemporaryDirectory(prefix="lw-", ignore_cleanup_errors=True)
    with temporary as folder, pytest.MonkeyPatch.context() as patch:
        # A token of its own, whatever this machine's user has: nodes and routers inherit it.
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex)
        # Or the one text that is asked for again and again would need its encoder once: nobody would miss it.
        patch.setenv("LIKEWISE_KEPT_ENCODINGS", "0")
        try:
            yield mark, RayNode(mark, Path(folder) / "ray"), Path(folder)
        finally:
            cluster_processes.end_all(mark)


class Router(ServerProcess):
    """`likewise serve` that has joined the cluster; it can be killed alone."""

    def __init__(self, store: Path, node: RayNode) -> None:
        port = str(free_port())
        super().__init__(store, ["--ray", node.address, "--port", port, "--log-level", "ERROR"])


def _pid(mark: str, part: str) -> int:
    """The process of a part; on a busy machine it may just be starting again, after the fault before."""
    wait_until(lambda: part in cluster_processes.parts(mark))
    return cluster_processes.parts(mark)[part]


@contextmanager
def _frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _inflict(fault: str, mark: str, router: Router, load: Load) -> None:
    since = time.monotonic()
    match fault.split(" ", 1):
        case ["SIGKILL", "router"]:
            router.kill()
            router.start()
        case ["SIGKILL", part]:
            os.kill(_pid(mark, part), signal.SIGKILL)
        case ["SIGSTOP", part]:
            with _frozen(_pid(mark, part)):
                load.wait_error(since, RECOVERY_S)


FAULTS: Final = (
    f"SIGKILL shard 0 of {rpcs.GALLERY}",
    f"SIGKILL writer of {rpcs.GALLERY}",
    "SIGKILL encoder of shapes-text",
    "SIGKILL controller",
    f"SIGSTOP shard 1 of {rpcs.GALLERY}",
    "SIGKILL router",
)
LONG_FAULTS: Final = (*FAULTS, f"SIGSTOP writer of {rpcs.GALLERY}", "SIGSTOP encoder of shapes-text")


def test_a_cluster_that_loses_any_of_its_processes_under_load_keeps_its_promises() -> None:
    faults: Counter[str] = Counter()
    with cluster() as (mark, head, folder):
        router = Router(folder / "store", head)
        router.start()
        try:
            checkers = rpcs.all_rpcs(make_galleries(router.address)) | gallery_rpcs.SNAPSHOTS
            load = Load(router.address, rpcs.GALLERY, checkers, seed=OPTIONS.seed, callers=3)
            try:
                rpcs.write_static(load.callers[0])
                with load:
                    load.wait_answered(time.monotonic(), RECOVERY_S)
                    for _ in range(ROUNDS):
                        for fault in LONG_FAULTS if OPTIONS.long else FAULTS:
                            since = time.monotonic()
                            _inflict(fault, mark, router, load)
                            faults[fault] += 1
                            load.recovered(fault, since, RECOVERY_S)
                assert rpcs.verify(load.callers[0]) >= rpcs.STATIC
            finally:
                section = {"seed": OPTIONS.seed, **load.as_json(), "faults": dict(faults)}
                report.add("process faults, cluster", section)
                load.close()
        finally:
            router.kill()


@pytest.mark.parametrize("fault", ["node lost", "raylet killed"])
def test_a_cluster_that_loses_a_node_under_load_keeps_its_promises(fault: str) -> None:
    with cluster() as (mark, head, folder):
        node = RayNode(mark, folder / "ray", head.address)
        router = Router(folder / "store", head)
        router.start()
        try:
            load = Load(router.address, rpcs.GALLERY, rpcs.all_rpcs(make_galleries(router.address)), seed=OPTIONS.seed)
            there = cluster_processes.marked(node.mark, variable=cluster_processes.NODE_MARK)
            lost = {name: pid for name, pid in cluster_processes.parts(mark).items() if pid in there}
            assert lost, "the node runs no part: there is nothing to lose"
            try:
                rpcs.write_static(load.callers[0])
                with load:
                    load.wait_answered(time.monotonic(), RECOVERY_S)
                    node.end() if fault == "node lost" else node.end_raylet()
                    # A raylet's workers end by themselves, a moment after it.
                    wait_until(lambda: all(cluster_processes.ended(pid) for pid in lost.values()))
                    load.recovered(f"{fault}, with {', '.join(sorted(lost))}", time.monotonic(), RECOVERY_S)
                assert rpcs.verify(load.callers[0]) >= rpcs.STATIC
            finally:
                section = {"seed": OPTIONS.seed, **load.as_json(), "faults": {fault: 1}}
                report.add(f"cluster, {fault}", section)
                load.close()
        finally:
            router.kill()
