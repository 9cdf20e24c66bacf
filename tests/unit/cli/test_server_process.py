import signal
import sys
from pathlib import Path

import pytest

from likewise.cli.server_process import ServerFailed, ServerProcess, serve_command

OBEDIENT = """
import signal, sys
def stop(number, frame):
    print("drained")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("loading")
print("serving on 127.0.0.1:4711, store here")
signal.pause()
"""


def _process(program: str, folder: Path) -> ServerProcess:
    return ServerProcess([sys.executable, "-u", "-c", program], log_path=folder / "logs" / "server.log")


def test_a_server_is_ready_when_it_says_where_it_serves(tmp_path: Path) -> None:
    with _process(OBEDIENT, tmp_path) as server:
        assert server.address == "127.0.0.1:4711"
        assert server.pid > 0


def test_leaving_asks_the_server_to_stop_and_waits_until_it_has(tmp_path: Path) -> None:
    server = _process(OBEDIENT, tmp_path)

    with server:
        pass

    assert server.stop() == 0
    assert server.log_path.read_text().splitlines()[-1] == "drained"


def test_an_error_inside_still_stops_the_server(tmp_path: Path) -> None:
    server = _process(OBEDIENT, tmp_path)

    with pytest.raises(KeyboardInterrupt), server:
        raise KeyboardInterrupt

    assert server.stop() == 0


def test_a_server_that_ends_at_once_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    program = "print('the store is held by process 42'); raise SystemExit(3)"

    with pytest.raises(ServerFailed, match="ended before it served") as caught, _process(program, tmp_path):
        pass

    assert "the store is held by process 42" in str(caught.value)


def test_a_server_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likewise.cli.server_process._GRACE_S", 0.2)
    program = OBEDIENT.replace('    print("drained")\n    sys.exit(0)', "    pass").replace(
        "signal.pause()", "while True: signal.pause()"
    )
    server = _process(program, tmp_path)

    with server:
        pass

    assert server.stop() == -signal.SIGKILL


def test_the_serve_command_names_store_and_port() -> None:
    command = serve_command(Path("store"), port=5, arguments=["--ray", "local"])

    assert command[1:] == ["-m", "likewise.cli.serve", "--store", "store", "--port", "5", "--ray", "local"]
