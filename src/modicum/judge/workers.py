"""Candidates judged side by side: by processes on this machine, or by a Ray cluster; the answers do not depend on how many there are."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import traceback
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from typing_extensions import override

from modicum.allocate._family import Judge
from modicum.core.errors import SettingError
from modicum.core.method import Change
from modicum.core.option import KEEP
from modicum.core.plan import Picks, Table
from modicum.data.splits import Batch
from modicum.export import TARGETS
from modicum.judge.judge import Levels, Part, PlanJudge
from modicum.models.model import Model
from modicum.models.open import open_model
from modicum.sweep import Script
from modicum.sweep.rehearsal import use_eager_experts
from modicum.sweep.spill import SpillPool
from modicum.table.findings import DEPTH, Findings, Sizing
from modicum.work.store import FormStore

_RECIPE = "recipe.pt"
# A candidate whose judging kills so many workers is given up.
_DEATHS = 2

Task = tuple[Picks, int]
"""A selection, and the sequences to judge it on."""


@contextlib.contextmanager
def workers(judge: PlanJudge, spec: str, events: list[str] | None = None) -> Iterator[Judge]:
    """A judge whose ``many`` is spread over ``spec``: a number of processes, or ``ray``; ``1`` is the plain judge.

    Each worker opens the model for itself, once, and judges whole candidates; answers stand in the order of the questions. One candidate alone
    is judged in this process. Forms are made here alone, before candidates are sent; workers read them. A worker that dies is replaced and its
    candidate judged again; a candidate that kills a second one is lost, its divergence infinite. Both are told in ``events``.

    *Needs and cost:* start-up of an interpreter per worker and the memory of a judge; a module in memory is written to disk once, beside the
    forms, and mapped by all. This process's threads and its limit on activations are shared out among local workers. On a cluster, which is
    asked for one CPU per worker, all nodes must see the folder of the forms and the model's. *Reduces to:* the plain judge, bit for bit, where
    the products do not depend on the number of threads. *Raises:* ``SettingError`` for any other ``spec``, without Ray, for a module that cannot
    be pickled, and where workers die before they judge anything.
    """
    if spec == "1":
        yield judge
        return
    folder = Path(tempfile.mkdtemp(prefix="workers-", dir=judge.levels.store.directory.absolute().parent))
    try:
        with _crew(judge, spec, folder) as crew:
            yield Spread(judge, crew, folder, [] if events is None else events)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _crew(judge: PlanJudge, spec: str, folder: Path) -> Iterator[Crew]:
    if spec == "ray":
        with _cluster() as ray:
            count = max(1, int(ray.cluster_resources().get("CPU", 1)))
            _write(judge, folder, count)
            yield Actors(ray, count, folder)
        return
    if not spec.isdigit() or int(spec) < 1:
        raise SettingError(f"workers: must be a number of processes or ray, got {spec!r}.")
    _write(judge, folder, int(spec))
    processes = Processes(int(spec), folder)
    try:
        yield processes
    finally:
        for place in list(processes.members):
            processes.retire(place)


class Spread:
    """A judge that hands candidates to a crew."""

    def __init__(self, judge: PlanJudge, crew: Crew, folder: Path, events: list[str]):
        self.judge, self.crew, self.folder, self.events = judge, crew, folder, events
        self.samples = judge.samples
        # Workers that have opened the model and that will have; candidates that they hold, numbered over all calls.
        self._open: set[int] = set()
        self._opening = set(range(crew.count))
        self._held: dict[int, int] = {}
        self._asked = 0

    def __call__(self, picks: Picks, samples: int) -> np.ndarray:
        """Judge one selection, here."""
        return self.judge(picks, samples)

    def many(self, candidates: Sequence[Picks], samples: int) -> list[np.ndarray]:
        """Judge several side by side; what a worker raises is raised, of several the first candidate's."""
        if len(candidates) < 2:
            return self.judge.many(candidates, samples)
        self._prepare(candidates)
        found = self._shared_out([(picks, samples) for picks in candidates])
        self.judge.evaluations += len(candidates)
        for outcome in found:
            if isinstance(outcome, Exception):
                raise outcome
        return found

    def _prepare(self, candidates: Sequence[Picks]) -> None:
        """Everything that workers will read."""
        levels = self.judge.levels
        self.judge.prepare(candidates)
        for span in {self.judge.table.choices[DEPTH][picks[DEPTH]].option for picks in candidates if DEPTH in picks} - {KEEP}:
            if not (path := _change_path(self.folder, span)).exists():
                torch.save(levels.change(span), path)

    def _shared_out(self, tasks: Sequence[Task]) -> list[Any]:
        """Outcomes by task, whoever is done first."""
        named = {self._asked + place: task for place, task in enumerate(tasks)}
        self._asked += len(tasks)
        left, deaths, found = deque(named), Counter[int](), dict[int, Any]()
        while not named.keys() <= found.keys():
            for place in sorted(self._open - self._held.keys())[: len(left)]:
                self._held[place] = left.popleft()
                self.crew.give(place, named[self._held[place]])
            for place, answer in self.crew.answers():
                if place in self._opening:
                    self._opened(place, answer)
                elif not isinstance(answer, Died):
                    found[self._held.pop(place)] = answer
                elif (number := self._replaced(place, answer)) in named:
                    deaths[number] += 1
                    if deaths[number] < _DEATHS:
                        left.appendleft(number)
                    else:
                        self.events.append("search: a candidate is lost, both workers that judged it died")
                        found[number] = np.full(named[number][1], np.inf)
        return [found[number] for number in named]

    def _opened(self, place: int, answer: Any) -> None:
        """A worker is ready, or never will be. Raises what it could not do, and ``SettingError`` where nobody is left."""
        if isinstance(answer, Exception):
            raise answer
        self._opening.remove(place)
        if not isinstance(answer, Died):
            self._open.add(place)
            return
        self.crew.retire(place)
        left = len(self._open | self._opening)
        self.events.append(f"search: a worker died as it opened the model ({answer.reason}), {left} are left")
        if not left:
            raise SettingError(
                f"workers: must open the model, {self.crew.count} died before they had ({answer.reason}). Pass fewer --workers, each takes the "
                "memory of one; a script must start its work under if __name__ == '__main__'."
            )

    def _replaced(self, place: int, died: Died) -> int:
        """Put another worker in the place of one that died; the number of the candidate it had, or -1."""
        self.events.append(f"search: a worker died ({died.reason}) and was replaced")
        self._open.remove(place)
        self._opening.add(place)
        self.crew.renew(place)
        return self._held.pop(place, -1)


# Crews: who carries it out


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
def _cluster() -> Iterator[Any]:
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


# Inside a worker


@dataclass(frozen=True)
class _Recipe:
    """All that a judge is made of, beside the forms in ``levels``; ``source`` is a directory, whose code may be trusted, or a module."""

    source: Path | nn.Module
    trusted: bool
    target: str
    script: Script
    table: Table
    findings: Findings
    levels: Path
    batches: list[Batch]
    causal: bool
    ram: int | None

    def judge(self, folder: Path) -> PlanJudge:
        model = open_model(self.source, trust_remote_code=self.trusted)
        use_eager_experts(model)
        sizing, pool = Sizing(TARGETS[self.target](model, self.script), ()), SpillPool(self.ram, folder)
        return PlanJudge(self.table, MadeLevels(self.levels, folder, sizing, self.findings, pool), self.batches, self.causal)


def _write(judge: PlanJudge, folder: Path, count: int) -> None:
    levels, target = judge.levels, judge.target
    model, limit = target.model, levels.pool.limit
    # A config that names code of its own was only opened because it is trusted.
    trusted = bool(getattr(model.config, "auto_map", None))
    recipe = _Recipe(
        _source(model), trusted, target.name, target.script, judge.table, levels.findings, levels.store.directory.absolute(), judge.batches,
        judge.causal, None if limit is None else limit // count,
    )  # fmt: skip
    try:
        torch.save(recipe, folder / _RECIPE)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise SettingError(
            f"workers: {model.name} must be picklable to be sent to others, is not ({error}). Give it as a directory, or pass --workers 1."
        ) from None


def _source(model: Model) -> Path | nn.Module:
    """What a worker opens: the directory where weights are read lazily from it, otherwise the module."""
    return model.directory.absolute() if model.weights.lazy and model.directory is not None else model.module


class MadeLevels(Levels):
    """Levels that another process makes, and its changes of depth in ``folder``; nothing is written."""

    def __init__(self, directory: Path, folder: Path, sizing: Sizing, findings: Findings, pool: SpillPool):
        super().__init__(directory, sizing, findings, [], pool, 0)
        self.folder = folder

    @override
    def require(self, parts: Iterable[Part]) -> None:
        """Look again where something is missing."""
        if any(part not in self and (part[1] != KEEP or part[2]) for part in parts):
            self.store = FormStore(self.store.directory)

    @override
    def change(self, span: str) -> Change:
        if span not in self._changes:
            self._changes[span] = torch.load(_change_path(self.folder, span), weights_only=False)
        return self._changes[span]


def _change_path(folder: Path, span: str) -> Path:
    return folder / f"{hashlib.sha256(span.encode()).hexdigest()[:16]}.pt"


class Worker:
    """A judge that answers with what it found or with what went wrong."""

    def open(self, folder: Path, threads: int) -> Exception | None:
        """Open the model."""
        torch.set_num_threads(threads)
        try:
            recipe = torch.load(folder / _RECIPE, mmap=True, weights_only=False)
            self.judge = recipe.judge(folder)
        except Exception as error:
            return _sendable(error)
        return None

    def outcome(self, task: Task) -> np.ndarray | Exception:
        """Judge one selection."""
        try:
            return self.judge(*task)
        except Exception as error:
            return _sendable(error)


def _sendable(error: Exception) -> Exception:
    """The error where it survives the way, otherwise its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


def serve(pipe: connection.Connection, folder: Path, threads: int) -> None:
    """Answer what comes through the pipe until its other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = Worker()
    with contextlib.suppress(EOFError, OSError):
        pipe.send(worker.open(folder, threads))
        while True:
            pipe.send(worker.outcome(pipe.recv()))
