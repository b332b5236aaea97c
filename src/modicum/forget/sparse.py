"""Sparsity-aware unlearning: fine-tuning on what is retained while a penalty drives weights to zero, or after weights were pruned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.forget.forgetter import Forgetter, Rows, updated
from modicum.train.rows import stacked


@dataclass(frozen=True, kw_only=True)
class Sparse(Forgetter):
    """``steps`` updates on rows to retain, with ``penalty · Σ|w|`` that falls to 0, on the share ``keep`` of the weights, the largest of all.

    *Reduces to* plain fine-tuning at ``penalty=0 keep=1``, to prune first, then unlearn at ``penalty=0``, and to L1-sparse unlearning at
    ``keep=1``. *Needs and cost:* no row to forget; training.
    """

    paper: ClassVar[Paper | None] = Paper(
        title="Model Sparsity Can Simplify Machine Unlearning",
        arxiv="2304.04934",
        year=2023,
        authors="Jinghan Jia and Jiancheng Liu and Parikshit Ram and Yuguang Yao and Gaowen Liu and Yang Liu and Pranay Sharma and Sijia Liu",
    )

    penalty: float = param(5e-4, "weight of the sum of absolute values, at first", between=(0.0, 1e6))
    keep: float = param(1.0, "share of the weights that pruning leaves before", between=(1e-6, 1.0))
    steps: int = param(100, "updates", between=(1, 10**6))
    rate: float = param(3e-3, "learning rate of Adam", between=(1e-12, 10.0))
    batch: int = param(64, "rows in an update", between=(1, 10**6))

    @override
    def forget(self, module: nn.Module, rows: Rows) -> None:
        matrices = {name: parameter for name, parameter in module.named_parameters() if parameter.ndim > 1}
        masks = masked(matrices, self.keep) if self.keep < 1 else None

        def objective(places: list[int], step: int) -> torch.Tensor:
            value = rows.loss(module, stacked([rows.retain[place] for place in places])).mean()
            share = self.penalty * (1 - step / self.steps)
            return value + share * torch.stack([parameter.abs().sum() for parameter in matrices.values()]).sum() if share else value

        if rows.retain:
            updated(
                module, len(rows.retain), objective, steps=self.steps, rate=self.rate, batch=self.batch, seed=rows.seed, masks=masks
            )  # fmt: skip


def masked(matrices: dict[str, nn.Parameter], keep: float) -> dict[str, torch.Tensor]:
    """Set all but the largest share of the entries to 0; gives the masks."""
    sizes = torch.cat([parameter.detach().abs().flatten() for parameter in matrices.values()])
    least = sizes.kthvalue(max(1, round((1 - keep) * len(sizes)))).values
    masks = {name: (parameter.detach().abs() > least).to(parameter.dtype) for name, parameter in matrices.items()}
    for name, parameter in matrices.items():
        parameter.data.mul_(masks[name])
    return masks
