"""How long the command line and ``import modicum`` take to start: the best of several, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time

from bench.common import show

TRIES = 9


def main() -> None:
    seconds = {
        "python, doing nothing": _best("-c", ""),
        "modicum --help": _best("-m", "modicum", "--help"),
        "modicum fit --help": _best("-m", "modicum", "fit", "--help"),
        "import modicum": _best("-c", "import modicum"),
        "import torch": _best("-c", "import torch"),
        "import torch, modicum": _best("-c", "import torch, modicum"),
        "import torch, modicum; modicum.fit": _best("-c", "import torch, modicum; modicum.fit"),
    }
    show(f"Start: best of {TRIES} processes", ("what", "seconds"), [(name, f"{spent:.3f}") for name, spent in seconds.items()])


def _best(*words: str) -> float:
    return min(_seconds(words) for _ in range(TRIES))


def _seconds(words: tuple[str, ...]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
