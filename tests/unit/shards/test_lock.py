import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from likewise.shards.lock import LOCK_FILE, StoreLock, StoreLocked

HOLD = """
import sys
from pathlib import Path
from likewise.shards.lock import StoreLock
StoreLock(Path(sys.argv[1]), address="127.0.0.1:50051").acquire()
print("held", flush=True)
sys.stdin.read()
"""


def holder(root: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_and_told_who_holds_the_store(tmp_path: Path) -> None:
    process = holder(tmp_path)

    try:
        with pytest.raises(StoreLocked) as refused:
            StoreLock(tmp_path).acquire()
    finally:
        end(process)

    assert refused.value.holder is not None
    assert refused.value.holder.pid == process.pid
    assert f"process {process.pid}" in str(refused.value)
    assert "127.0.0.1:50051" in str(refused.value)


def test_kill_9_of_the_holder_frees_the_store(tmp_path: Path) -> None:
    process = holder(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()

    with StoreLock(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_a_program_that_the_holder_starts_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = StoreLock(tmp_path)
    lock.acquire()
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)

    lock.release()

    try:
        StoreLock(tmp_path).acquire()
    finally:
        child.kill()
        child.communicate()


def test_one_process_cannot_hold_a_store_twice(tmp_path: Path) -> None:
    with StoreLock(tmp_path), pytest.raises(StoreLocked):
        StoreLock(tmp_path).acquire()


def test_a_released_store_is_free_and_names_nobody(tmp_path: Path) -> None:
    with StoreLock(tmp_path, address="here:1"):
        pass

    assert (tmp_path / LOCK_FILE).read_text() == ""
    with StoreLock(tmp_path):
        pass


def test_the_address_can_follow_once_it_is_known(tmp_path: Path) -> None:
    with StoreLock(tmp_path, address="a-longer-name-than-the-next:50051") as lock:
        lock.update_address("host:1")
        with pytest.raises(StoreLocked, match="serving at host:1,"):
            StoreLock(tmp_path).acquire()


@pytest.mark.parametrize("text", ["", "{", '{"pid": 1}', "[]"])
def test_an_unreadable_holder_is_another_process(tmp_path: Path, text: str) -> None:
    with StoreLock(tmp_path):
        (tmp_path / LOCK_FILE).write_text(text)

        with pytest.raises(StoreLocked, match="in use by another process") as refused:
            StoreLock(tmp_path).acquire()

    assert refused.value.holder is None
