"""Where a server listens: a port, and beside it a Unix socket if one is wanted.

gRPC hardly says what is wrong with an address, and takes a socket away from the server that listens on it. So both are
looked at before they are given to it.
"""

import socket
from pathlib import Path
from typing import Final

_PROBE_S: Final = 1.0


class CannotListen(Exception):
    """A port or a socket cannot be had; the message says which and why."""


def port_address(host: str, port: int) -> str:
    """host:port, for gRPC and for people."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def socket_address(path: Path) -> str:
    """A Unix socket as gRPC names it."""
    return f"unix:{path}"


def check_port(host: str, port: int, *, option: str, share: bool = False) -> None:
    """Raise if a port cannot be had.

    Args:
        host: Name or number.
        port: 0 for any free one.
        option: What it was chosen with.
        share: Others may listen on it that share it too.

    Raises:
        CannotListen: With the system's reason.
    """
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if share:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind(target)
    except OSError as error:
        why = error.strerror or str(error)
        raise CannotListen(
            f"cannot listen on {port_address(host, port)}: {why}; choose another with {option}"
        ) from error


def check_socket(path: Path) -> None:
    """Raise if a socket cannot be had; one that a killed server left behind can be.

    Raises:
        CannotListen: If somebody listens on it, something else is there, or the folder or the path will not do.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            if path.parent.is_dir():
                return
            why = f"there is no folder {path.parent}"
        except ConnectionRefusedError:
            if path.is_socket():
                return
            why = "what is there is no socket"
        except (TimeoutError, BlockingIOError):
            why = "somebody listens on it, but is busy"
        except OSError as error:
            why = error.strerror or str(error)
        else:
            why = "another server listens on it"
    raise CannotListen(f"cannot listen on {socket_address(path)}: {why}; choose another with --socket")
