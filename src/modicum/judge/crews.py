"""Crews of workers: processes of this machine, or actors of a Ray cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol

import torch

from modicum.core.errors import SettingError
from modicum.judge.worker import Task, Worker, serve


@dataclass(frozen=True)
class Died:
    """The answer of a worker that is no more."""

    reason: str


class Crew(Protocol):
    """Workers by place. Each answers first when it has opened the model, then once for every task; a task is given to those that have none."""

    count: int

    def give(self, place: int, task: Task) -> None:
        """Hand a task to a worker; one that died says so in its next answer."""

    def answers(self) -> Iterable[tuple[int, Any]]:
        """Wait for at least one answer: (place, divergences, an exception or ``Died``)."""
        ...

    def renew(self, place: int) -> None:
        """Put a new worker in the place of one that died."""

    def retire(self, place: int) -> None:
        """Leave the place of one that died empty."""


class Processes:
    """Workers as processes of this machine, with a pipe to each."""

    def __init__(self, count: int, folder: Path):
        self.count, self.folder = count, folder
        # A fork would share the locks of thread pools that it does not have.
        self.context = multiprocessing.get_context("spawn")
        self.members = {place: self._started() for place in range(count)}

    def _started(self) -> tuple[Any, connection.Connection]:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=serve, args=(theirs, self.folder, max(1, torch.get_num_threads() // self.count)), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    def give(self, place: int, task: Task) -> None:
        """Send a task."""
        with contextlib.suppress(OSError):
            self.members[place][1].send(task)

    def answers(self) -> Iterator[tuple[int, Any]]:
        """What has come through the pipes."""
        ready = connection.wait([pipe for _, pipe in self.members.values()])
        for place in [place for place, (_, pipe) in self.members.items() if pipe in ready]:
            process, pipe = self.members[place]
            try:
                yield place, pipe.recv()
            except (EOFError, OSError):
                process.join()
                yield place, Died(f"exit code {process.exitcode}")

    def renew(self, place: int) -> None:
        """Start another process."""
        self.retire(place)
        self.members[place] = self._started()

    def retire(self, place: int) -> None:
        """End a process; it holds nothing that is not on disk."""
        process, pipe = self.members.pop(place)
        process.kill()
        process.join()
        pipe.close()


class Actors:
    """Workers as actors of a Ray cluster, one for each CPU.

    Ray's own restarts are off: calls fail while an actor is on its way back, so that its death would count twice.
    """

    def __init__(self, ray: Any, count: int, folder: Path):
        self.ray, self.count, self.folder = ray, count, folder
        self.made = ray.remote(num_cpus=1, max_restarts=0)(Worker)
        self.members: dict[int, Any] = {}
        self.waiting: dict[Any, int] = {}
        for place in range(count):
            self.renew(place)

    def give(self, place: int, task: Task) -> None:
        """Send a task."""
        self.waiting[self.members[place].outcome.remote(task)] = place

    def answers(self) -> Iterator[tuple[int, Any]]:
        """What has come back."""
        done, _ = self.ray.wait(list(self.waiting), num_returns=1)
        for call in done:
            place = self.waiting.pop(call)
            try:
                answer = self.ray.get(call)
            except self.ray.exceptions.RayActorError as error:
                answer = Died(type(error).__name__)
            yield place, answer

    def renew(self, place: int) -> None:
        """Start another actor."""
        self.members[place] = self.made.remote()
        self.waiting[self.members[place].open.remote(self.folder, 1)] = place

    def retire(self, place: int) -> None:
        """Forget an actor, which ends it."""
        del self.members[place]


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    """Ray, on the cluster that this process is connected to; otherwise the one it finds; otherwise a cluster of this machine alone."""
    try:
        import ray
    except ImportError:
        raise SettingError("workers: ray must be installed, is not. Install modicum[ray], or pass a number of processes.") from None
    connected = ray.is_initialized()
    if not connected:
        # Nothing is sent to anybody unless the user says so.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(log_to_driver=False)
    try:
        yield ray
    finally:
        if not connected:
            ray.shutdown()
