"""How many processors this process may use: those it may run on, and no more than its control group may burn.

A container's limit is not seen by `os.cpu_count`, nor by the scheduler's affinity: a pod limited to two processors on a
machine of 64 would start 64 threads and be held back by the kernel for most of every period.
https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max), https://docs.kernel.org/scheduler/sched-bwc.html (v1)
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_V2_LIMIT: Final = "cpu.max"
_V1_QUOTA: Final = "cpu.cfs_quota_us"
_V1_PERIOD: Final = "cpu.cfs_period_us"


def usable_processors() -> int:
    """Processors for this process's threads, at least 1; a fraction of one counts as one."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return within_limit(affinity, cgroup_limit(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")))


def within_limit(processors: int, limit: float | None) -> int:
    """At least 1, and as many threads as keep a limit busy: 1.5 processors are used by two."""
    return processors if limit is None else max(1, min(processors, math.ceil(limit)))


def cgroup_limit(root: Path, membership: Path) -> float | None:
    """Processors that the control groups of this process allow together, of either version; None without a limit.

    Args:
        root: Where the control groups are mounted.
        membership: "/proc/self/cgroup": the groups of this process, a line ``number:controllers:path`` each.
    """
    limits = [limit for folder in _folders(root, membership) if (limit := _limit(folder)) is not None]
    return min(limits, default=None)


def _folders(root: Path, membership: Path) -> Iterator[Path]:
    """The process's group and those above it: the smallest limit on the way holds."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mounted = root
        elif "cpu" in controllers.split(","):
            mounted = root / controllers if (root / controllers).is_dir() else root / "cpu"
        else:
            continue
        # In a container the path may be the host's, while its own group is what is mounted: the root is read as well.
        inner = mounted / path.lstrip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(mounted))


def _limit(folder: Path) -> float | None:
    try:
        if (folder / _V2_LIMIT).is_file():
            quota, period = (folder / _V2_LIMIT).read_text().split()
        else:
            quota, period = (folder / _V1_QUOTA).read_text(), (folder / _V1_PERIOD).read_text()
        # "max" (v2) and -1 (v1) stand for no limit.
        return None if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
