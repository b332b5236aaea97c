"""The processor of this machine, as the system tells it."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path


def processor() -> str:
    """Name of the processor, as the system tells it."""
    return _told("model name") or platform.processor() or platform.machine()


def instructions() -> set[str]:
    """Names of the processor's kinds of instructions, where the system tells them: many clouds call all their processors alike."""
    return set((_told("flags") or _told("Features")).split())


def _told(what: str) -> str:
    """A line of what the system says of its first processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(what):
                return line.partition(":")[2].strip()
    return ""
