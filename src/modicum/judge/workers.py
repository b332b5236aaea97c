"""Candidates judged side by side: by processes on this machine, or by a Ray cluster; the answers do not depend on how many there are."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modicum.allocate._family import Judge
from modicum.core.errors import SettingError
from modicum.core.option import KEEP
from modicum.core.plan import Picks
from modicum.judge.crews import Actors, Crew, Died, Processes, cluster
from modicum.judge.judge import PlanJudge
from modicum.judge.worker import Task, change_path, write_recipe
from modicum.table.findings import DEPTH

# A candidate whose judging kills so many workers is given up.
_DEATHS = 2


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
        with cluster() as ray:
            count = max(1, int(ray.cluster_resources().get("CPU", 1)))
            write_recipe(judge, folder, count)
            yield Actors(ray, count, folder)
        return
    if not spec.isdigit() or int(spec) < 1:
        raise SettingError(f"workers: must be a number of processes or ray, got {spec!r}.")
    write_recipe(judge, folder, int(spec))
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
        tasks = [(picks, begun, samples) for picks in candidates if (begun := self.judge.judged(picks)) < samples]
        for (picks, begun, _), outcome in zip(tasks, self._shared_out(tasks)):
            if isinstance(outcome, Exception):
                raise outcome
            self.judge.learn(picks, begun, outcome)
        return [self.judge(picks, samples) for picks in candidates]

    def _prepare(self, candidates: Sequence[Picks]) -> None:
        """Everything that workers will read."""
        levels = self.judge.levels
        self.judge.prepare(candidates)
        for span in {self.judge.table.choices[DEPTH][picks[DEPTH]].option for picks in candidates if DEPTH in picks} - {KEEP}:
            if not (path := change_path(self.folder, span)).exists():
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
                        found[number] = np.full(named[number][2] - named[number][1], np.inf)
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
