"""A learner: a value that says how a model takes up one more task, and what is kept of those before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from modicum.core.errors import ModelError
from modicum.core.recipe import Recipe
from modicum.core.settings import param
from modicum.data.splits import Batch
from modicum.delta import Delta
from modicum.forms import Sum
from modicum.learn.tasks import Task
from modicum.models.trainable import matrix, trainable
from modicum.train.changed import changed
from modicum.train.finding import Plan
from modicum.train.rows import drawn, stacked, together
from modicum.train.trained import Trained, trained


@dataclass(eq=False)
class Learning:
    """What was learnt so far: ``experts`` are changes of ``module``, which stays as it is, and ``of`` says which of them answers a task.

    ``kept`` is what a learner remembers of tasks, by its own names; rows of tasks that are over are in ``tasks``, for those learners that say
    that they look at them.
    """

    module: nn.Module
    seed: int = 0
    tasks: list[Task] = field(default_factory=list)
    experts: list[Delta] = field(default_factory=list)
    of: dict[str, int] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def answering(self, expert: int | None) -> Iterator[nn.Module]:
        """Inside, the module computes with an expert, or as it was."""
        if expert is None:
            yield self.module
            return
        with changed(self.module, self.experts[expert]) as module:
            yield module

    def copied(self, expert: int | None) -> nn.Module:
        """A module of its own with an expert's weights."""
        made = copy.deepcopy(self.module)
        if expert is not None:
            units = trainable(made)
            with torch.no_grad():
                for name, weight in self.experts[expert].on(lambda name: matrix(made, units[name])):
                    matrix(made, units[name]).copy_(weight)
        return made.eval()

    def give(self, task: Task, delta: Delta, expert: int | None = None) -> None:
        """Let a change answer a task: one more expert, or in the place of one."""
        if expert is None:
            self.experts.append(delta)
            expert = len(self.experts) - 1
        self.experts[expert] = delta
        self.of[task.name] = expert


@dataclass(frozen=True, kw_only=True)
class Learner(Recipe):
    """Root of all learners: frozen settings, and one function."""

    # Whether what old tasks are answered stays the same to the last bit.
    apart: ClassVar[bool] = False
    # Whether rows of old tasks are looked at again.
    looks_back: ClassVar[bool] = False

    steps: int = param(200, "updates for each task", between=(1, 10**7))
    rate: float = param(3e-3, "learning rate of Adam, falling to 0", between=(1e-12, 10.0))
    batch: int = param(32, "rows in an update", between=(1, 10**6))

    def learn(self, learning: Learning, task: Task) -> None:
        """Learn one more task: ``learning.give`` says what answers it."""
        raise NotImplementedError

    def answers(self, learning: Learning, batch: Batch) -> torch.Tensor | None:
        """Classes (rows,) that are told where nobody names the task; None for learners that must be told."""
        return None

    def fitted(
        self, module: nn.Module, plan: Plan, learning: Learning, task: Task, *, penalty: Callable[[nn.Module], torch.Tensor] | None = None,
        after: Callable[[Trained, int], None] | None = None, steps: int = 0, begun: Delta | None = None,
    ) -> Delta:  # fmt: skip
        """Train a plan on a task's rows, plus a penalty; what was learnt, as a change of the module. ``after`` is called behind each update.

        Training begins where ``begun``, which the same plan gave, ended.
        """
        data, seed, steps = task.train, learning.seed + len(learning.tasks), steps or self.steps
        with trained(module, plan, seed=seed, total=steps) as t:
            if begun is not None:
                _go_on(t, begun)
            optimizer = torch.optim.Adam(t.parameters(), lr=self.rate)
            for step, places in zip(range(steps), drawn(len(data), min(self.batch, len(data)), seed)):
                for group in optimizer.param_groups:
                    group["lr"] = self.rate * (1 - step / steps)
                optimizer.zero_grad()
                value = task.loss(module, stacked([data[place] for place in places])).mean()
                if penalty is not None:
                    value = value + penalty(module)
                if not bool(torch.isfinite(value)):
                    raise ModelError(f"learn: the loss of {task.name} must be a number, is none at update {step + 1}. Lower the rate.")
                value.backward()
                optimizer.step()
                t.revise(optimizer)
                if after is not None:
                    after(t, step + 1)
            return t.delta(type(module).__name__)


def _go_on(t: Trained, begun: Delta) -> None:
    for name, place in t.places.items():
        form = begun.forms[name]
        for part, tensor in (form.parts[-1] if isinstance(form, Sum) else form).tensors().items():
            place.state.trained[part].data.copy_(tensor)
    before = {each.place: each.tensors for each in begun.asides}
    for each in t.asides:
        for part, parameter in each.state.trained.items():
            parameter.data.copy_(before[each.place][part])


def head(module: nn.Module) -> str:
    """The module of the last linear layer, which gives the classes. Raises ``ModelError`` where there is none."""
    found = [unit.module for unit in trainable(module).values() if unit.kind in ("linear", "conv1d")]
    if not found:
        raise ModelError("learn: the model must end in a linear layer that gives classes, has none.")
    return found[-1]


def of_head(module: nn.Module, task: Task) -> dict[str, str]:
    """The plan that trains the layer that gives a task its classes; nothing of a language model, whose words are everybody's."""
    return {f"{head(module)}.*": "full"} if task.classes is not None else {}


def features(module: nn.Module, batch: Batch) -> torch.Tensor:
    """What the layer that gives classes is given (rows, width)."""
    met: list[torch.Tensor] = []
    hook = module.get_submodule(head(module)).register_forward_pre_hook(lambda layer, args: met.append(args[0]))
    try:
        module(*batch[:-1])  # type: ignore[index]
    finally:
        hook.remove()
    return met[-1].float()


def class_means(module: nn.Module, task: Task) -> torch.Tensor:
    """Mean features of each class of a task (classes, width), of length one."""
    assert task.classes is not None
    with torch.no_grad():
        found = torch.cat([features(module, batch) for batch in together(task.train)])
    labels = stacked(task.train)[-1].reshape(-1)  # type: ignore[index]
    return nn.functional.normalize(torch.stack([found[labels == label].mean(0) for label in task.classes]), dim=1)
