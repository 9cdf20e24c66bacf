"""The bare grpc.aio echo: the same messages as Likewise's, answered with the bytes of one of its real answers."""

from contextlib import ExitStack
from importlib import metadata
from typing import Final

from benchmarks.peers.adapters.likewise_server import LikewiseServer, requests_of, stub_calls
from benchmarks.peers.driver.protocol import OnLoop, Question, Rows, Setting

from likewise.cli.benchmark.echo import ANY_PORT, echo_command
from likewise.cli.benchmark.search import one_reply
from likewise.cli.server_process import ServerProcess

_ENOUGH_ROWS: Final = 1_000  # for an answer of the usual size


class Echo:
    """The echo server in a process of its own. Options: those of Likewise, which gives the answer."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._stack = ExitStack()
        self._address = ""

    def versions(self) -> dict[str, str]:
        """Of what it is made of."""
        return {"grpcio": metadata.version("grpcio")}

    def load(self, rows: Rows) -> None:
        """Let Likewise answer one query over a few rows, and serve those bytes from now on; nothing is stored."""
        if self._address:
            return
        few = Rows(rows.base[:_ENOUGH_ROWS], rows.share[:_ENOUGH_ROWS], rows.cluster_share[:_ENOUGH_ROWS])
        server = LikewiseServer(Setting(self._setting.folder, self._setting.threads, self._setting.options))
        try:
            # A search through the gallery that wrote waits until what was written is visible.
            server.store(few).search(vector=few.base[0], k=10)
            reply = one_reply(server.address, requests_of(Question(few.base[:1], k=10, params={"ef": 64}))[0])
        finally:
            server.close()
        path = self._setting.folder / "reply"
        path.write_bytes(reply)
        on_socket = self._setting.options["transport"] == "socket"
        where = f"unix:{self._setting.folder / 'echo.sock'}" if on_socket else ANY_PORT
        echo = ServerProcess(echo_command(path, where), log_path=self._setting.folder / "echo.log")
        self._address = self._stack.enter_context(echo).address

    def prepare(self, question: Question) -> OnLoop:
        """The messages that Likewise gets."""
        return OnLoop(lambda: stub_calls(self._address, requests_of(question)))

    def close(self) -> None:
        """Stop the server."""
        self._stack.close()


def adapter(setting: Setting) -> Echo:
    """Ready to be loaded."""
    return Echo(setting)
