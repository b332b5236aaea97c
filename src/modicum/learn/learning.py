"""Tasks in, changes out, with what each task is worth after each other one."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from modicum.core.arguments import checked
from modicum.core.errors import DataError, SettingError, quoted
from modicum.core.output import require_free, write_receipt, writing
from modicum.core.progress import Quiet
from modicum.core.recipe import recipe
from modicum.delta import Delta
from modicum.learn.judged import judged, summary
from modicum.learn.learner import Learner, Learning
from modicum.learn.tasks import Task
from modicum.work.meter import Meter

RECEIPT_FORMAT = "modicum-learnt"


@dataclass(frozen=True)
class Learnt:
    """What ``learn`` made: the changes, which of them answers which task, the receipt, and the folder where they stand, None where none was named."""

    learner: Learner
    learning: Learning
    receipt: dict[str, Any]
    out: Path | None

    def delta(self, task: str) -> Delta:
        """The change with which a task is answered. Raises ``SettingError`` for a task that was not learnt."""
        if task not in self.learning.of:
            raise SettingError(f"learn: {quoted(task)} must be a task that was learnt. Those are {', '.join(self.learning.of)}.")
        return self.learning.experts[self.learning.of[task]]


@checked(but=("model", "tasks", "method"))
def learn(
    model: str | Path | nn.Module,
    tasks: Sequence[Task] | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    method: str | Learner = "finetune",
    tokens: int = 128,
    samples: int = 512,
    test_samples: int = 32,
    text_column: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Quiet | None = None,
) -> Learnt:
    """Let a model learn tasks one after the other, and give what it learnt as deltas of the model, which stays as it is.

    ``model``: a classifier or any module, with values of ``modicum.learn.tasks.Task``; or a language model (``demo``, a directory, a Hugging Face
    id) with files of text, of each of which windows of ``tokens`` are learnt and others reported on. ``method``: a learner and its settings.

    The receipt says after every task how well each task so far is answered, before any too; the mean at the end, and how much was lost since
    each was learnt; whether old answers are the same to the last bit; and the bytes of what was added for each.

    *Raises*: ``SettingError`` for a method that is no learner, or an ``out`` that must not be written; ``DataError`` for tasks that cannot be read
    or bear one name; ``ModelError`` for a model that cannot be opened, or without what a learner needs.
    """
    asked: Learner = recipe("learn", method)
    shown, place = progress or Quiet(), Path(out) if out is not None else None
    read = [Path(each) for each in tasks if isinstance(each, str | Path)]
    if place is not None:
        require_free(place, read, overwrite)
    if isinstance(model, nn.Module):
        module, known = copy.deepcopy(model).eval(), _given(tasks)
    else:
        from modicum.learn.texts import opened

        module, known = opened(model, tasks, tokens=tokens, samples=samples, test_samples=test_samples, seed=seed, text_column=text_column)
    if double := sorted({task.name for task in known if [other.name for other in known].count(task.name) > 1}):
        raise DataError(f"learn: tasks must have names of their own, {quoted(double[0])} comes twice. Rename one.")
    learning, started, meter = Learning(module, seed), time.perf_counter(), Meter(shown)
    rows = [judged(asked, learning, known)]
    with meter.stage("learning", len(known)):
        for task in known:
            asked.learn(learning, task)
            learning.tasks.append(task)
            rows.append(judged(asked, learning, known))
            shown.step()
    receipt: dict[str, Any] = {
        "format": RECEIPT_FORMAT, "version": 1, "model": str(model) if isinstance(model, str | Path) else type(model).__name__,
        "method": str(asked), "seed": seed, "promises old answers": asked.apart, "looks back": asked.looks_back,
        "tasks": [task.name for task in known], "experts": dict(learning.of), "bytes": [delta.nbytes for delta in learning.experts],
        "parameters": sum(parameter.numel() for parameter in module.parameters()), "seconds": time.perf_counter() - started,
    }  # fmt: skip
    receipt |= {**summary(rows, known), "stages": meter.stages}
    if place is not None:
        with writing(place, read, overwrite) as folder:
            for number, delta in enumerate(learning.experts):
                delta.save(folder / f"expert-{number}")
            write_receipt(folder, receipt)
    return Learnt(asked, learning, receipt, place)


def _given(tasks: Any) -> list[Task]:
    if not isinstance(tasks, Sequence) or not tasks or not all(isinstance(task, Task) for task in tasks):
        raise DataError("tasks: must be a list of modicum.learn.tasks.Task, at least one. Write Task(name, train, test).")
    return list(tasks)
