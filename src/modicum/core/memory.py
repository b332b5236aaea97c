"""Memory of this process: how much it holds, how much it may still take, and how to give back what it no longer needs."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

try:
    import resource
except ImportError:  # no such limits elsewhere
    resource = None  # type: ignore[assignment]

# What the older kind of control group calls its limit and its use.
_OLD = ("memory.limit_in_bytes", "memory.usage_in_bytes")
# What is no limit, in the older kind.
_BOUNDLESS = 1 << 62
_STATUS = Path("/proc/self/status")
# Where control groups are told, and those of this process.
_ROOT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
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


def group_limit() -> int | None:
    """The least memory in bytes that a control group of this process allows; None where none limits it."""
    return min((limit for most, *_ in _places(_ROOT, _OWN) if (limit := _number(most)) is not None), default=None)


def _groups(root: Path = _ROOT, own: Path = _OWN) -> Iterator[int]:
    """What each control group that this process is in leaves of memory; files in its cache give way."""
    for place in _places(root, own):
        if (left := _left(*place)) is not None:
            yield left


def _places(root: Path = _ROOT, own: Path = _OWN) -> Iterator[tuple[Path, Path, Path]]:
    """Of each control group that this process is in, the files of its limit, its use, and what it consists of."""
    if not own.exists():
        return
    for line in own.read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory") and "memory" not in kinds.split(","):
            continue
        most, used, top = ("memory.max", "memory.current", root) if not kinds else (*_OLD, root / "memory")
        place = top / path.lstrip("/")
        for group in (place, *place.parents):
            yield group / most, group / used, group / "memory.stat"
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


def _number(path: Path) -> int | None:
    """The limit in a file of a control group; None where there is none. The older kind writes the largest number of pages for that."""
    try:
        limit = int(path.read_text())
    except (OSError, ValueError):
        return None
    return limit if limit < _BOUNDLESS else None


@contextmanager
def uncollected() -> Iterator[None]:
    """Inside, objects that refer to themselves are not looked for: of hundreds of thousands of small ones that all stay, that takes long."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def trim(*, circles: bool = True) -> None:
    """Give freed memory back to the system, which the C library would keep in pieces; before that, free what only refers to itself (``circles``)."""
    if circles:
        gc.collect()
    if _TRIM is not None:
        _TRIM(0)
