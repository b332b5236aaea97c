"""What the loss feels of leaving out a group: the gradient of a mask on it, sequence by sequence, from the gradients of its consumer's weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from modicum.core.settings import param
from modicum.core.unit import Site, Stats, Unit
from modicum.data.splits import Batch, each_row
from modicum.drop._family import CutDropper, group_size
from modicum.models.model import Model
from modicum.sweep import Script
from modicum.sweep.slopes import each_gradient
from modicum.sweep.spill import SpillPool


@dataclass(frozen=True, kw_only=True)
class Masker(CutDropper):
    """Methods that score groups by the gradients of masks on them; what is lost per weight left out is compared over the whole model."""

    sequences: int = param(32, "calibration sequences whose gradients are taken", between=(1, 1_000_000))

    @property
    def drawn(self) -> bool:
        """Whether labels are drawn from the model's own output instead of read off the text."""
        return False

    def importance(self, gradients: torch.Tensor) -> torch.Tensor:
        """Score (groups,) from the masks' gradients (sequences, groups)."""
        raise NotImplementedError

    def survey(
        self, model: Model, script: Script, batches: Sequence[Batch], pool: SpillPool, sites: Sequence[Site], seed: int
    ) -> tuple[dict[str, torch.Tensor], dict[str, Stats]]:  # fmt: skip
        """Scores per weight that goes."""
        some = list(batches) if script.whole else [row for batch in batches for row in each_row(batch)][: self.sequences]
        found = mask_gradients(model, script, some, sites, seed, drawn=self.drawn)
        sizes = {site.name: group_size(site) for site in sites}
        return {name: self.importance(gradients) / sizes[name] for name, gradients in found.items()}, {}


def mask_gradients(
    model: Model, script: Script, batches: Sequence[Batch], sites: Sequence[Site], seed: int, *, drawn: bool = False
) -> dict[str, torch.Tensor]:
    """Of each site the gradients (sequences, groups) of masks on its groups, at the whole model.

    A mask ``m`` on input column j of a consumer with weight W has the gradient ``Σ_t x_tj (Wᵀ g_t)_j``, which is ``Σ_i W_ij G_ij`` of the gradient G
    of the weight; a group's is the sum over its columns. A consumer whose gradients cannot be seen is absent.
    """
    consumers = {site.axes[-1].unit: site for site in sites}
    found: dict[str, dict[int, torch.Tensor]] = {}

    def seen(number: int, unit: Unit, gradient: torch.Tensor) -> None:
        site = consumers[unit.name]
        columns = (model.matrix(unit).float() * gradient.cpu()).sum(0)
        groups = torch.stack([columns[list(group)].sum() for group in site.axes[-1].groups])
        found.setdefault(site.name, {})[number] = groups

    count = each_gradient(model, batches, script, consumers.keys(), seen, seed, drawn=drawn)
    missing = {name: torch.zeros_like(next(iter(rows.values()))) for name, rows in found.items()}
    return {name: torch.stack([rows.get(number, missing[name]) for number in range(count)]) for name, rows in found.items()}
