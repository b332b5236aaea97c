"""A network of rectifiers as one that is linear under gates: each unit is open as often as it was on the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from modicum.core.errors import ModelError
from modicum.data.splits import Batch
from modicum.learn.tasks import Task
from modicum.train.rows import together


@dataclass(frozen=True)
class Gated:
    """What is kept of a task's rows: how often each rectified unit was open, by module, and mean and covariance of the inputs.

    ``open_`` (unit's shape) from 0 to 1; ``mean`` (values,) and ``factor`` (values, values) of the inputs laid flat, whose shape is ``shape``.
    """

    task: Task
    open_: dict[str, torch.Tensor]
    mean: torch.Tensor
    factor: torch.Tensor
    shape: tuple[int, ...]

    @classmethod
    def of(cls, module: nn.Module, task: Task) -> Gated:
        """Of a module on a task's rows, in one pass. Raises ``ModelError`` for a module without rectifiers, or a language model."""
        places = [name for name, part in module.named_modules() if isinstance(part, nn.ReLU)]
        if not places or task.classes is None:
            raise ModelError("laftr: the model must be a classifier with rectified units (torch.nn.ReLU), is none. Take sfr or clr.")
        counts, inputs = dict[str, torch.Tensor](), []
        hooks = [module.get_submodule(name).register_forward_hook(partial(_counted, counts, name)) for name in places]
        try:
            with torch.no_grad():
                for batch in together(task.train):
                    inputs.append(batch[0].float())  # type: ignore[index]
                    module(*batch[:-1])  # type: ignore[index]
        finally:
            for hook in hooks:
                hook.remove()
        rows = torch.cat(inputs)
        flat = rows.flatten(1).double()
        away = flat - flat.mean(0)
        values, vectors = torch.linalg.eigh(away.T @ away / max(1, len(flat) - 1))
        factor = vectors * values.clamp(min=0).sqrt()
        opened = {name: found / len(rows) for name, found in counts.items()}
        return cls(task, opened, flat.mean(0).float(), factor.float(), tuple(rows.shape[1:]))

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        return sum(each.nbytes for each in (*self.open_.values(), self.mean, self.factor))

    def drawn(self, count: int, seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Inputs of the data's mean and covariance (count, ...), and gates of units by module (count, ...)."""
        chance = torch.Generator().manual_seed(seed)
        inputs = self.mean + torch.randn(count, len(self.mean), generator=chance) @ self.factor.T
        gates = {name: (torch.rand(count, *share.shape, generator=chance) < share).float() for name, share in self.open_.items()}
        return inputs.reshape(count, *self.shape), gates

    def answered(self, module: nn.Module, drawn: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> torch.Tensor:
        """Logits of the linear network under drawn gates (count, classes), differentiable in the module's weights."""
        inputs, gates = drawn
        with gated(module, gates):
            return self.task.logits(module, (inputs, inputs))


def distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Half of the mean squared distance of two answers (rows, classes): the function space distance."""
    return 0.5 * (one - other).square().sum(1).mean()


@contextmanager
def gated(module: nn.Module, gates: dict[str, torch.Tensor]) -> Iterator[None]:
    """Inside, rectifiers multiply by gates."""
    hooks = [module.get_submodule(name).register_forward_hook(partial(_gate, gate)) for name, gate in gates.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _gate(gate: torch.Tensor, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
    return args[0] * gate.to(args[0].dtype)


def _counted(counts: dict[str, torch.Tensor], name: str, module: nn.Module, args: tuple, output: torch.Tensor) -> None:
    found = (args[0] > 0).float().sum(0)
    counts[name] = counts[name] + found if name in counts else found


def true_distance(one: nn.Module, other: nn.Module, task: Task, rows: Sequence[Batch]) -> float:
    """The function space distance of two modules on rows, taken from the rows themselves."""
    with torch.no_grad():
        found = [
            distance(task.logits(one, batch), task.logits(other, batch)) * len(batch[-1]) for batch in together(rows)  # type: ignore[index]
        ]  # fmt: skip
    return float(torch.stack(found).sum() / len(rows))
