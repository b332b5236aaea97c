"""Experts: those whose outputs the model feels least are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from modicum.core.errors import ModelError
from modicum.core.method import Change, Need, Paper
from modicum.core.settings import param
from modicum.core.unit import Axis, Site, Stats, Unit
from modicum.data.splits import Batch
from modicum.drop._family import SiteCutter, cut_sites
from modicum.models.model import Model
from modicum.sweep import Script, Stage, Sweep
from modicum.sweep.spill import SpillPool


@dataclass(frozen=True, kw_only=True)
class Experts(SiteCutter):
    """Leave an expert out: what the router sends to it adds nothing.

    An expert's importance is the energy of its output over the tokens it met, ``tr(W H Wᵀ)`` with W its last product and H the sum over
    these tokens, so that frequency counts as much as size; on a menu, the same energy weighed by the gradient at its output.

    *Shapes:* the last product's weight (rows, columns), covariance (columns, columns). *Needs and cost:* the covariance of each expert's last
    input. *Reduces to:* the original model at ``keep=1``. *Raises:* ``ModelError`` where the model has no stacked experts.

    *Differences from the paper:* the router stays as it is, so that any architecture's own routing remains right and experts may differ in
    number from block to block; tokens are not sent elsewhere. Pruning is one-shot, without fine-tuning.

    Example:
        >>> str(Experts(keep=0.75))
        'experts keep=0.75'

    """

    paper = Paper(
        "SEER-MoE: Sparse Expert Efficiency through Regularization for Mixture-of-Experts",
        "2404.05089",
        2024,
        "Muzio, Alexandre and others",
    )
    needs = frozenset({Need.COVARIANCE})
    menu = ({"keep": 0.0},)
    cuts = frozenset({"experts"})

    keep: float = param(0.75, "share of each block's experts kept; on a menu 0: the expert is left out", between=(0.0, 1.0), dial=True)

    def order(self, weight: torch.Tensor, covariance: torch.Tensor, groups: Sequence[Sequence[int]]) -> list[int]:
        """One expert, one group."""
        return list(range(len(groups)))

    def kept(self, order: Sequence[int]) -> list[int]:
        """Nothing of an expert that is left out."""
        return []

    def reshape(self, model: Model, script: Script, batches: Sequence[Batch], pool: SpillPool, seed: int = 0) -> Change:
        """Leave out the least of every block's experts."""
        sites = expert_sites(model, script)
        if not sites:
            raise ModelError(f"{self.key()}: {model.name} must have stacked experts, has none. Try another method.")
        energies = _energies(model, script, batches, pool, seed, {site.axes[-1].unit for site in sites.values()})
        wanted: dict[str, tuple[Site, SiteCutter, list[int] | None]] = {}
        for stack in dict.fromkeys(site.units[-1].module for site in sites.values()):
            mine = sorted(
                (site for site in sites.values() if site.units[-1].module == stack), key=lambda site: energies[site.axes[-1].unit]
            )  # fmt: skip
            gone = len(mine) - max(1, round(self.keep * len(mine)))
            wanted |= {site.name: (site, self, []) for site in mine[:gone]}
        return cut_sites(model, script, batches, pool, wanted, seed=seed)


def expert_sites(model: Model, script: Script) -> dict[str, Site]:
    """One site for each expert of each stack: all its products, in the order they are taken."""
    found: dict[str, Site] = {}
    for name, use in script.stacks.items():
        parts: list[dict[int | None, Unit]] = [
            {unit.expert: unit for unit in model.units.values() if unit.module == name and unit.parameter.endswith(f".{attribute}")}
            for attribute in use.attributes
        ]
        for expert in parts[-1]:
            units = tuple(part[expert] for part in parts if expert in part)
            axes = [Axis(unit.name, "rows", (tuple(range(unit.shape[0])),)) for unit in units[:-1]]
            axes.append(Axis(units[-1].name, "columns", (tuple(range(units[-1].shape[1])),)))
            site = Site(f"{name}[{expert}]:experts", "cut", units, tuple(axes))
            found[site.name] = site
    return found


def _energies(
    model: Model, script: Script, batches: Sequence[Batch], pool: SpillPool, seed: int, wanted: set[str]
) -> Mapping[str, float]:  # fmt: skip
    """Energy of each unit's output over the tokens it met."""
    found: dict[str, float] = {}

    def energy(unit: Unit, stats: Stats) -> float:
        if stats.covariance is None or stats.frequency is None or not stats.count:
            return 0.0
        weight, met = model.matrix(unit).float(), float(stats.frequency.sum()) / stats.count  # a starved one has its stack's covariance
        return met * float((weight @ stats.covariance * weight).sum())

    def survey(stage: Stage) -> None:
        found.update({unit.name: energy(unit, stage.stats[unit.name]) for unit in stage.units if unit.name in wanted})

    Sweep(model, batches, script, survey, needs={Need.COVARIANCE}, measured=wanted, seed=seed, pool=pool).finish()
    return found
