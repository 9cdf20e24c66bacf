"""The upper limit of any Python gRPC server: a grpc.aio server that answers every search with the same ready bytes.

It stands at the path of SearchService.Search, so that the very same client can ask it; requests are received whole
and not even parsed. Run as `python -m likewise.cli.benchmark.echo REPLY_FILE [ADDRESS]`, it prints "serving on" and its
address: a free port unless told otherwise.
"""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from likewise.wire import MAX_MESSAGE_BYTES

ANY_PORT: Final = "127.0.0.1:0"
SEARCH_PATH: Final = "/likewise.v1.SearchService/Search"


def echo_command(reply: Path, address: str = ANY_PORT) -> list[str]:
    """The command line that serves the bytes of a file, at an address as gRPC names it."""
    return [sys.executable, "-m", "likewise.cli.benchmark.echo", str(reply), address]


async def serve(reply: bytes, address: str) -> None:
    """Answer with `reply` until SIGTERM or SIGINT."""

    async def search(request: bytes, context: Any) -> bytes:
        del request, context
        return reply

    _, service, method = SEARCH_PATH.split("/")
    # Without (de)serialisers a handler takes and gives bytes.
    handlers: dict[str, Any] = {method: grpc.unary_unary_rpc_method_handler(search)}
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ]
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port(address)
    await server.start()
    host, _, chosen = address.rpartition(":")
    print(f"serving on {host}:{port}" if chosen == "0" else f"serving on {address}", flush=True)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()
    await server.stop(grace=1)


def run_loop(main: Any) -> None:
    """Run a coroutine on the event loop that Likewise's servers use: uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


if __name__ == "__main__":
    run_loop(serve(Path(sys.argv[1]).read_bytes(), *(sys.argv[2:] or [ANY_PORT])))
