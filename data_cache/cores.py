"""How many cores this process may really use: affinity and container limits included."""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


@cache
def n_cores() -> int:
    """Return how many cores this process may use, at least 1.

    That is the smaller of its affinity (all cores where a system has none) and the quota of its
    control group, as containers set it, rounded up.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, _quota(_CGROUPS))))


def _quota(folder: Path) -> float:
    """Return the cores that a control group allows, of version 2 or 1; infinity without a limit."""
    try:
        quota, period = (folder / "cpu.max").read_text("ascii").split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu" / "cpu.cfs_quota_us").read_text("ascii")
            period = (folder / "cpu" / "cpu.cfs_period_us").read_text("ascii")
        except OSError:
            return math.inf
    return float(quota) / float(period) if quota.strip() not in {"max", "-1"} else math.inf
