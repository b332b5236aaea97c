"""Memory of this process: how much it holds, and how to give back what it no longer needs."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import psutil

_STATUS = Path("/proc/self/status")
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def own_memory() -> int:
    """Anonymous plus shared memory of this process in bytes; resident memory where the system does not tell them apart."""
    if _STATUS.exists():
        found = [line.split() for line in _STATUS.read_text().splitlines() if line.startswith(("RssAnon:", "RssShmem:"))]
        if found:
            return sum(int(words[1]) for words in found) * 1024
    return psutil.Process().memory_info().rss


def trim(*, circles: bool = True) -> None:
    """Give freed memory back to the system, which the C library would keep in pieces; before that, free what only refers to itself (``circles``)."""
    if circles:
        gc.collect()
    if _TRIM is not None:
        _TRIM(0)
