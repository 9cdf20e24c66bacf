"""`likewise serve` as a process, and `likewise doctor`."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from likewise.cli import doctor, serve
from likewise.shards.lock import StoreLock


@contextmanager
def _serving(store: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "likewise.cli.serve", "--store", str(store), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline()
        finally:
            process.kill()


def test_a_server_says_when_it_is_ready_and_drains_on_sigterm(tmp_path: Path) -> None:
    with _serving(tmp_path, "--metrics-port", "0") as (process, ready):
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=60)

    assert ready.startswith("likewise: serving on 127.0.0.1:")
    assert "metrics on 127.0.0.1:" in ready
    assert rest.splitlines() == ["likewise: draining", "likewise: stopped"]
    assert process.returncode == 0
    assert "Traceback" not in errors


def test_a_store_in_use_ends_the_start_with_the_holder(tmp_path: Path) -> None:
    with StoreLock(tmp_path, address="127.0.0.1:7"), _serving(tmp_path) as (process, ready):
        _, errors = process.communicate(timeout=60)

    assert ready == ""
    assert process.returncode == 1
    assert "likewise: cannot start: the store" in errors
    assert "127.0.0.1:7" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("loaded", ["likewise.client", "sys"])  # as the command does, and numpy with it; as -m does
@pytest.mark.parametrize(
    ("chosen", "threads"),
    [({}, [1]), ({"OMP_NUM_THREADS": "2"}, [1]), ({"OPENBLAS_NUM_THREADS": "2"}, [min(2, os.cpu_count() or 1)])],
)
def test_numpy_multiplies_on_one_thread_in_a_server_unless_the_operator_says_otherwise(
    chosen: dict[str, str], threads: list[int], loaded: str
) -> None:
    program = f"""
import {loaded}
import likewise.cli.serve
from threadpoolctl import threadpool_info
print([pool["num_threads"] for pool in threadpool_info() if "numpy" in pool["filepath"] and pool["user_api"] == "blas"])
"""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}

    found = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, **chosen},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert found.stdout.strip() == str(threads)


def test_doctor_finds_nothing_broken_here(tmp_path: Path) -> None:
    result = CliRunner().invoke(doctor.app, ["--json", "--store", str(tmp_path / "new"), "--port", "0"])

    findings = {finding["check"]: finding["status"] for finding in json.loads(result.stdout)}
    assert {"python", "grpcio", "faiss-cpu", "store", "port", "models", "open files"} <= findings.keys()
    assert "broken" not in findings.values()
    assert result.exit_code == 0
    assert not (tmp_path / "new").exists()


def test_doctor_exits_1_when_something_is_broken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(
            doctor.app, ["--json", "--store", str(tmp_path), "--port", port, "--models", str(tmp_path / "none")]
        )

    broken = {finding["check"] for finding in json.loads(result.stdout) if finding["status"] == "broken"}
    assert broken == {"port", f"models in {tmp_path / 'none'}"}
    assert result.exit_code == 1


@pytest.mark.parametrize("option", [["--port", "70000"], ["--log-format", "xml"]])
def test_a_wrong_option_ends_with_2_and_its_name(option: list[str]) -> None:

    result = CliRunner().invoke(serve.app, option)

    assert result.exit_code == 2
    assert option[0].removeprefix("--").replace("-", "_") in result.output
