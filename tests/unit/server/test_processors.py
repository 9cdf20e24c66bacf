"""Threads come from what the process may use, not from what the machine has."""

from pathlib import Path

import pytest

from likewise.server.processors import cgroup_limit, usable_processors, within_limit


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content + "\n")


def membership(folder: Path, *lines: str) -> Path:
    path = folder / "cgroup"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("content", "expected"),
    [("200000 100000", 2.0), ("150000 100000", 1.5), ("max 100000", None), ("", None), ("1 0", None), ("x y", None)],
)
def test_version_2_says_quota_and_period_in_one_file(tmp_path: Path, content: str, expected: float | None) -> None:
    root = tmp_path / "fs"
    group(root, cpu__max=content)

    assert cgroup_limit(root, membership(tmp_path, "0::/")) == expected


def test_the_smallest_limit_above_the_process_holds(tmp_path: Path) -> None:
    root = tmp_path / "fs"
    group(root / "pod", cpu__max="300000 100000")
    group(root / "pod" / "container", cpu__max="max 100000")
    group(root / "other", cpu__max="100000 100000")

    assert cgroup_limit(root, membership(tmp_path, "0::/pod/container")) == 3.0


@pytest.mark.parametrize(("pod", "container"), [(1, 4), (4, 1)])
def test_a_wider_limit_below_or_above_changes_nothing(tmp_path: Path, pod: int, container: int) -> None:
    root = tmp_path / "fs"
    group(root / "pod", cpu__max=f"{pod}00000 100000")
    group(root / "pod" / "container", cpu__max=f"{container}00000 100000")

    assert cgroup_limit(root, membership(tmp_path, "0::/pod/container")) == 1.0


def test_the_mounted_group_is_read_when_the_path_is_the_hosts(tmp_path: Path) -> None:
    root = tmp_path / "fs"
    group(root, cpu__max="50000 100000")

    assert cgroup_limit(root, membership(tmp_path, "0::/kubepods/burstable/pod1/2")) == 0.5


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_version_1_says_it_in_two_files(tmp_path: Path, mount: str) -> None:
    root = tmp_path / "fs"
    group(root / mount / "docker" / "1", cpu__cfs_quota_us="400000", cpu__cfs_period_us="100000")
    lines = ("5:memory:/docker/1", "4:cpu,cpuacct:/docker/1", "0::/")

    assert cgroup_limit(root, membership(tmp_path, *lines)) == 4.0


def test_version_1_without_a_limit_says_minus_one(tmp_path: Path) -> None:
    group(tmp_path / "fs" / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")

    assert cgroup_limit(tmp_path / "fs", membership(tmp_path, "4:cpu:/")) is None


def test_a_system_without_control_groups_has_no_limit(tmp_path: Path) -> None:
    assert cgroup_limit(tmp_path / "none", tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("processors", "limit", "expected"), [(64, 2.0, 2), (64, 1.5, 2), (64, 0.1, 1), (2, 8.0, 2), (4, None, 4)]
)
def test_a_limit_gives_as_many_threads_as_keep_it_busy(processors: int, limit: float | None, expected: int) -> None:
    assert within_limit(processors, limit) == expected


def test_there_is_at_least_one_processor() -> None:
    assert usable_processors() >= 1
