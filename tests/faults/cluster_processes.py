"""Which process of a cluster is what: by the environment that all of them inherit, their ports and the routing table.

No Ray here: what is looked at is what the kernel and the controller say, so that any process can be signalled at any
time, Ray's own included.
"""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import grpc

from likewise.internal.v1 import controller_service_pb2 as pb
from likewise.internal.v1 import controller_service_pb2_grpc

MARK: Final = "FAULTS_CLUSTER"
"""Environment variable that tells the processes of one test's cluster from all others."""

_LISTENING: Final = "0A"
_WATCH_S: Final = 2.0


NODE_MARK: Final = "FAULTS_NODE"
"""The same for one node of a cluster."""


def marked(mark: str, *, variable: str = MARK) -> dict[int, str]:
    """Process ids and command lines of everything that was started with the mark in its environment.

    Ray's workers write their titles over what they inherited: they are known by those that started them.
    """
    wanted = f"{variable}={mark}".encode()
    lines: dict[int, str] = {}
    children: dict[int, list[int]] = {}
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        pid = int(folder.name)
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            lines[pid] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            children.setdefault(parent, []).append(pid)
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(pid)
    for pid in found:  # grows while it is walked
        found += [child for child in children.get(pid, ()) if child not in found]
    return {pid: lines[pid] for pid in found if pid in lines}


def end_all(mark: str, *, variable: str = MARK) -> None:
    """SIGKILL for all of them, those that others start meanwhile included."""
    while pids := [pid for pid in marked(mark, variable=variable) if not ended(pid)]:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def parts(mark: str) -> dict[str, int]:
    """Process id of every part that is up: "controller", "writer of g", "shard 0 of g", "encoder of model"."""
    processes = {pid: line for pid, line in marked(mark).items() if line.startswith("ray::")}
    owners = {address: pid for pid in processes for address in _listening(pid)}
    ports = {_port(address): pid for address, pid in owners.items()}
    found: dict[str, int] = {}
    for address, pid in owners.items():
        if "controller" in processes[pid].lower() and (table := _routing_table(address)) is not None:
            found["controller"] = pid
            found |= {name: ports[port] for name, port in _addresses(table) if port in ports}
            break
    return found


def _routing_table(address: str) -> pb.RoutingTable | None:
    with grpc.insecure_channel(address) as channel, suppress(grpc.RpcError):
        stub = controller_service_pb2_grpc.ControllerServiceStub(channel)
        response: pb.WatchResponse
        for response in stub.Watch(pb.WatchRequest(), timeout=_WATCH_S):
            return response.table
    return None


def _addresses(table: pb.RoutingTable) -> Iterator[tuple[str, int]]:
    for route in table.galleries:
        name = route.gallery.spec.name
        if route.writer:
            yield f"writer of {name}", _port(route.writer)
        for shard in route.shards:
            for replica, address in enumerate(shard.addresses):
                yield f"shard {shard.shard} of {name}" + (f", replica {replica}" if replica else ""), _port(address)
    for model in table.models:
        for address in model.addresses:
            yield f"encoder of {model.model.name}", _port(address)


def _port(address: str) -> int:
    return int(address.rsplit(":", 1)[1])


def _listening(pid: int) -> list[str]:
    """host:port of every TCP socket that a process listens on."""
    sockets = set()
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                sockets.add(os.readlink(entry))
    found = []
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, *rest = line.split()
                if state == _LISTENING and f"socket:[{rest[5]}]" in sockets:
                    host, port = local.rsplit(":", 1)
                    # The last four bytes, lowest first: the address itself, or what an IPv6 one has of an IPv4 one.
                    ip = socket.inet_ntoa(bytes.fromhex(host[-8:])[::-1])
                    found.append(f"{'127.0.0.1' if ip == '0.0.0.0' else ip}:{int(port, 16)}")
    return found


def ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to notice."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    return True
