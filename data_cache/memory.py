"""How much memory this process may still take, and sizes as people write them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from data_cache.errors import ParameterError

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the bytes of a size such as ``2GB``, ``500 MB`` or ``1.5GiB``; a KB has 1,000.

    Raises
    ------
    ParameterError
        It is no size, or less than a byte.
    """
    found = _SIZE.fullmatch(text)
    n_bytes = 0
    if found:
        number, letter, binary = found.groups()
        power = " kmgt".index(letter.lower() or " ")
        n_bytes = int(float(number) * (1024 if binary else 1000) ** power)
    if not n_bytes:
        raise ParameterError(f"{text!r} is no size: expected one such as 2GB or 500MB")
    return n_bytes


def available_bytes() -> int:
    """Return about how many bytes can be taken before the system swaps, or ends the process.

    That is the least of what the system has to give and what the limit of the control group, as
    containers set it, leaves.
    """
    return min(_of_system(_MEMINFO), _of_group(_CGROUP))


def _of_system(meminfo: Path) -> int:
    """Return what the system can give; half of all memory where it does not say."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text("ascii"))
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _of_group(folder: Path) -> int:
    """Return what a control group's limit leaves, cached files aside; very much without one."""
    try:
        limit = int((folder / "memory.max").read_text("ascii"))
        used = int((folder / "memory.current").read_text("ascii"))
        stat = (folder / "memory.stat").read_text("ascii")
    except (OSError, ValueError):
        return 1 << 62
    cached = re.search(r"^inactive_file (\d+)$", stat, re.MULTILINE)
    return max(0, limit - used + (int(cached[1]) if cached else 0))
