"""SFR: a model's outputs at a few inputs of each old task are held, as strongly as all of the task's rows say that they are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.learn.function_space import Dual
from modicum.learn.learner import Learner, Learning
from modicum.learn.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Sfr(Learner):
    """One model learns on; per old task ``hold / points · Σ (f(z) - f_old(z))ᵀ K⁻¹ beta K⁻¹ (f(z) - f_old(z))`` over classes is added to the loss.

    *Needs and cost:* ``points`` inputs of each old task and a matrix of their number squared per class; gradients of every row once.
    *Reduces to* fine-tuning at ``hold=0``. *Differs from the paper:* points are drawn from the rows, and classes do not meet in the kernel.
    """

    paper: ClassVar[Paper | None] = Paper(
        title="Function-space Parameterization of Neural Networks for Sequential Learning",
        arxiv="2403.10929",
        year=2024,
        authors="Aidan Scannell and Riccardo Mereu and Paul Edmund Chang and Ella Tamir and Joni Pajarinen and Arno Solin",
    )
    looks_back: ClassVar[bool] = True

    hold: float = param(1.0, "weight of what is held", between=(0.0, 1e9))
    points: int = param(40, "inputs that are kept of each task", between=(1, 10_000))
    prior: float = param(1e-3, "precision of the prior on each weight", between=(1e-12, 1e6))

    @override
    def learn(self, learning: Learning, task: Task) -> None:
        last = 0 if learning.experts else None
        working, held = learning.copied(last), [learning.kept[old.name] for old in learning.tasks]

        def penalty(module: nn.Module) -> torch.Tensor:
            found = []
            for old, points, wanted, precision in held:
                away = (old.logits(module, (points, None)) - wanted).T
                found.append(torch.einsum("ci,cij,cj->", away, precision, away) / len(points))
            return self.hold * torch.stack(found).sum()

        learning.give(task, self.fitted(working, {"*": "full"}, learning, task, penalty=penalty if held and self.hold else None), last)
        after = learning.copied(0)
        dual = Dual.of(after, task, self.points, self.prior, learning.seed)
        with torch.no_grad():
            learning.kept[task.name] = (task, dual.points, task.logits(after, (dual.points, dual.points)), dual.precision())
