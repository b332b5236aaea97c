"""Selective synaptic dampening: weights that matter far more to what is forgotten than to all of the data are made smaller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.data.splits import Batch
from modicum.forget.forgetter import Forgetter, Rows
from modicum.train.rows import Loss


@dataclass(frozen=True, kw_only=True)
class Ssd(Forgetter):
    """A weight whose importance ``f`` to the rows to forget exceeds ``alpha`` times its importance ``d`` to all rows is multiplied by
    ``min(lambda · d / f, 1)``.

    Importance is the mean over rows of the squared gradient of each row's own loss. A batch's squared gradient, as is often taken for it, shrinks
    with the batch's size, and the selection with it; here it depends on nothing but the rows.

    *Needs and cost:* a forward and backward pass for every row, and two numbers for every weight; no training.
    *Reduces to* nothing done at a large ``alpha``.
    """

    paper: ClassVar[Paper | None] = Paper(
        title="Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening",
        arxiv="2308.07707",
        year=2023,
        authors="Jack Foster and Stefan Schoepf and Alexandra Brintrup",
    )

    alpha: float = param(10.0, "how many times as important a weight must be to the rows to forget", between=(0.0, 1e9))
    dampen: float = param(1.0, "what the ratio of importances is multiplied by, the paper's lambda", between=(0.0, 1e9))

    @override
    def forget(self, module: nn.Module, rows: Rows) -> None:
        of_forget = importance(module, rows.forget, rows.loss)
        of_retain = importance(module, rows.retain, rows.loss)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                count = len(rows.forget), len(rows.retain)
                every = (of_forget[name] * count[0] + of_retain[name] * count[1]) / sum(count)
                chosen = of_forget[name] > self.alpha * every
                factor = (self.dampen * every / of_forget[name].clamp(min=1e-38)).clamp(max=1)
                parameter.copy_(torch.where(chosen, parameter * factor, parameter))


def importance(module: nn.Module, rows: Sequence[Batch], loss: Loss) -> dict[str, torch.Tensor]:
    """The mean over rows of the squared gradient of each row's loss, by parameter: the diagonal of the empirical Fisher information."""
    named = dict(module.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    for row in rows:
        found = torch.autograd.grad(loss(module, row).sum(), list(named.values()), allow_unused=True)
        for name, each in zip(named, found):
            if each is not None:
                total[name].addcmul_(each, each)
    return {name: each / max(1, len(rows)) for name, each in total.items()}
