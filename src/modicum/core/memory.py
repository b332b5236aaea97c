"""Memory of this process: how much it holds, how much it may still take, and how to give back what it no longer needs."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

try:
    import resource
except ImportError:  # no such limits elsewhere
    resource = None  # type: ignore[assignment]

# What the older kind of control group calls its limit and its use.
_OLD = ("memory.limit_in_bytes", "memory.usage_in_bytes")
_STATUS = Path("/proc/self/status")
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def own_memory() -> int:
    """Anonymous plus shared memory of this process in bytes; resident memory where the system does not tell them apart."""
    if _STATUS.exists():
        found = [line.split() for line in _STATUS.read_text().splitlines() if line.startswith(("RssAnon:", "RssShmem:"))]
        if found:
            return sum(int(words[1]) for words in found) * 1024
    return psutil.Process().memory_info().rss


def free_memory(ram: int | None = None) -> int:
    """Bytes that this process may still take: the least of what the system has, its control groups and limits allow, and ``ram`` leaves."""
    found = [psutil.virtual_memory().available, *_limits(), *_groups()]
    return max(0, min(found if ram is None else [*found, ram - own_memory()]))


def _limits() -> Iterator[int]:
    """What the process's own limits leave of addresses and of data."""
    if resource is None or not _STATUS.exists():
        return
    held = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    for limit, size in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        if (most := resource.getrlimit(limit)[0]) != resource.RLIM_INFINITY and size in held:
            yield most - int(held[size].split()[0]) * 1024


def _groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """What each control group that this process is in leaves of memory; files in its cache give way."""
    if not own.exists():
        return
    for line in own.read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory") and "memory" not in kinds.split(","):
            continue
        most, used, top = ("memory.max", "memory.current", root) if not kinds else (*_OLD, root / "memory")
        place = top / path.lstrip("/")
        for group in (place, *place.parents):
            if (left := _left(group / most, group / used, group / "memory.stat")) is not None:
                yield left
            if group == top:
                break


def _left(most: Path, used: Path, stat: Path) -> int | None:
    """What one control group leaves; None where it has no limit."""
    try:
        limit, held, told = (path.read_text().strip() for path in (most, used, stat))
        cached = {key: int(value) for key, value in (line.split() for line in told.splitlines())}
        return int(limit) - int(held) + cached.get("total_inactive_file", cached.get("inactive_file", 0)) if limit != "max" else None
    except (OSError, ValueError):
        return None


def trim(*, circles: bool = True) -> None:
    """Give freed memory back to the system, which the C library would keep in pieces; before that, free what only refers to itself (``circles``)."""
    if circles:
        gc.collect()
    if _TRIM is not None:
        _TRIM(0)
