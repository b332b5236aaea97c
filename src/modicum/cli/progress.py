"""Progress on stderr: a bar where somebody watches, lines where a log is written."""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO

from modicum.core.progress import Quiet

PERIOD = 60.0  # seconds after which there is another line
# Stages in words for those who have not read how it works.
SAID = {
    "gradients": "taking gradients", "measure": "measuring every option on every layer", "curvature": "taking curvature",
    "spans": "measuring spans of blocks", "scale": "judging random plans", "plain options": "judging plain options",
    "choose": "choosing", "survey": "looking for blocks to leave out",
    "cut": "cutting", "assemble": "compressing", "export": "writing", "verify": "reloading and comparing", "judge": "judging on test data",
}  # fmt: skip


class Progress(Quiet):
    """Progress that is shown for as long as it is open."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        """Show no more."""


class Bar(Progress):
    """One bar for the stage at work, gone when all is done."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Drawn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[told]}"),
        )
        self._drawn = Drawn(*columns, console=Console(stderr=True), transient=True)
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        self._drawn.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._drawn.stop()

    def start(self, stage: str, total: int) -> None:
        """A stage of ``total`` steps begins."""
        if self._task is not None:
            self._drawn.remove_task(self._task)
        self._task = self._drawn.add_task(SAID.get(stage, stage), total=total if total > 1 else None, told="")

    def step(self) -> None:
        """One step is done."""
        if self._task is not None:
            self._drawn.advance(self._task)

    def tell(self, words: str) -> None:
        """A few words behind the bar."""
        if self._task is not None:
            self._drawn.update(self._task, told=words)

    def say(self, line: str) -> None:
        """A line above the bar."""
        self._drawn.console.print(line, highlight=False, markup=False, soft_wrap=True)


class Lines(Progress):
    """A line for every stage as it begins, and another whenever ``period`` seconds have passed: the share done, and the time left."""

    def __init__(self, *, period: float = PERIOD, stream: TextIO | None = None):
        self._period, self._stream = period, stream
        self._stage, self._total, self._done, self._told = "opening the model", 1, 0, ""
        self._begun = self._stage_begun = time.monotonic()
        self._said, self._over, self._lock = threading.Event(), False, threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Lines:
        self._begun = self._stage_begun = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over = True
        self._said.set()
        self._thread.join()

    def start(self, stage: str, total: int) -> None:
        """A stage of ``total`` steps begins."""
        with self._lock:
            self._stage, self._total, self._done, self._stage_begun = SAID.get(stage, stage), total, 0, time.monotonic()
            self._told = ""
            self._say(f"{self._stage}, {total} steps" if total > 1 else self._stage)

    def step(self) -> None:
        """One step is done."""
        self._done += 1

    def tell(self, words: str) -> None:
        """A few words for the next line."""
        self._told = words

    def say(self, line: str) -> None:
        """A line of its own."""
        with self._lock:
            self._say(line)

    def _watch(self) -> None:
        """Say how far it is whenever nothing was said for long."""
        while not self._over:
            if self._said.wait(self._period):
                self._said.clear()
                continue
            with self._lock:
                self._say(f"{self._stage}: {self._far()}{self._told and f', {self._told}'}")

    def _far(self) -> str:
        spent, done = time.monotonic() - self._stage_begun, self._done
        if not done or self._total <= 1:
            steps = f"0 of {self._total} steps, " if self._total > 1 else ""
            return f"{steps}at work for {lasting(spent)}, the time left is not known yet"
        left = spent * max(0, self._total - done) / done
        return f"{done / self._total:.0%} done ({done} of {self._total} steps), about {lasting(left)} left in this stage"

    def _say(self, line: str) -> None:
        print(f"[{lasting(time.monotonic() - self._begun)}] {line}", file=self._stream or sys.stderr, flush=True)
        self._said.set()


def lasting(seconds: float) -> str:
    """A time for people: 42 s, 3 min 20 s, 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def progress(*, quiet: bool = False, lines: bool = False) -> Progress:
    """What suits the place that stderr goes to, lines where others stand between them, or nothing."""
    if quiet:
        return Progress()
    return Bar() if sys.stderr.isatty() and not lines else Lines()
