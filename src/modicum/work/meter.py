"""Time and peak memory by stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from modicum.core.budget import readable
from modicum.core.log import LOG
from modicum.core.memory import own_memory
from modicum.core.progress import Quiet

_PERIOD = 0.02


class Meter:
    """Samples memory in a thread while a stage runs; ``progress`` is told of stages that have steps."""

    def __init__(self, progress: Quiet | None = None) -> None:
        self.progress = progress or Quiet()
        self.stages: dict[str, dict[str, float]] = {}

    @contextmanager
    def stage(self, name: str, steps: int = 0) -> Iterator[None]:
        """Measure what runs inside under ``name``; seconds add up, by the clock and those all threads worked, peaks take the largest."""
        if steps:
            self.progress.start(name, steps)
        stop, peak = threading.Event(), [own_memory()]

        def watch() -> None:
            while not stop.wait(_PERIOD):
                peak[0] = max(peak[0], own_memory())

        thread = threading.Thread(target=watch, daemon=True)
        started, worked = time.perf_counter(), time.process_time()
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            before = self.stages.get(name, {"seconds": 0.0, "processor_seconds": 0.0, "peak_bytes": 0})
            LOG.info("%s: %.1f s, memory up to %s", name, time.perf_counter() - started, readable(peak[0]))
            self.stages[name] = {
                "seconds": round(before["seconds"] + time.perf_counter() - started, 3),
                "processor_seconds": round(before["processor_seconds"] + time.process_time() - worked, 3),
                "peak_bytes": max(before["peak_bytes"], peak[0]),
            }
