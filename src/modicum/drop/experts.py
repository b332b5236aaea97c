"""Experts: those whose outputs the model feels least are left out, and the others make up for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from modicum.core.errors import ModelError
from modicum.core.method import Change, Need, Paper
from modicum.core.settings import param
from modicum.core.unit import Axis, Site, Stats, Unit
from modicum.data.splits import Batch
from modicum.drop._family import SiteCutter, cut_sites
from modicum.models.model import Model
from modicum.numerics.mixture import Mixture
from modicum.numerics.threads import total
from modicum.sweep import Script, Stage, Sweep
from modicum.sweep.spill import SpillPool

# Rounds in which experts are fitted in turn, at most.
_ROUNDS = 8
# Dampings from which one is chosen.
_DAMPINGS = (0.01, 0.1, 1.0, 10.0)
# Experts that make up for one that is measured; and one of how many the damping is chosen on.
_NEAREST, _EVERY = 4, 4


@dataclass(frozen=True, kw_only=True)
class Experts(SiteCutter):
    """Leave an expert out: what the router sends to it adds nothing, and the experts that remain are refit to make up for it.

    An expert adds ``g a Wᵀ`` to its block's output, with the router's weight g, the input a of its last product and its weight W. Those that remain
    change their W by least squares so that the block's output, on all tokens, is nearest to the one before. Importance is the energy of what an
    expert adds, ``Σ g² ‖W a‖²`` over the tokens it met, so that frequency counts as much as size; on a menu, the same energy weighed by the
    gradient at its output. Both are multiplied by the share that others cannot make up for, measured on half of the tokens after a fit to the
    other half, by the four experts of those that add more which share most tokens with it. The damping is chosen on tokens held out too, and where
    no fit is better there than none, the others stay as they are.

    *Shapes:* the last product's weight (rows, columns), what it met (tokens, columns). *Needs and cost:* the covariance of each expert's last
    input; the inputs of one stack's last products at a time, which may spill; the module's forward three times or more, all but one without its
    products. Each expert that is refit takes about ``(2 tokens + columns) · columns · rows`` multiply-adds a round, of which there are at most eight,
    once more on half of the tokens for each damping tried, and ``columns³ / 3`` for each; to measure an expert takes up to four such refits, twice.
    *Reduces to:* the original model at ``keep=1``. *Raises:* ``ModelError`` where the model has no stacked experts.

    *Differences from the paper:* the router stays as it is, so that any architecture's own routing remains right and experts may differ in
    number from block to block; tokens are not sent elsewhere. Pruning is one-shot, with least squares in place of fine-tuning.

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
    needs = frozenset({Need.COVARIANCE, Need.ROUTED})
    menu = ({"keep": 0.0},)
    cuts = frozenset({"experts"})

    keep: float = param(0.75, "share of each block's experts kept; on a menu 0: the expert is left out", between=(0.0, 1.0), dial=True)
    damping: float | None = param(
        None, "share of the mean diagonal of the others' Gram matrices added to it; none: what serves tokens held out best", between=(0.0, 10.0)
    )  # fmt: skip

    def order(self, weight: torch.Tensor, covariance: torch.Tensor, groups: Sequence[Sequence[int]]) -> list[int]:
        """One expert, one group."""
        return list(range(len(groups)))

    def kept(self, order: Sequence[int]) -> list[int]:
        """Nothing of an expert that is left out."""
        return []

    def make_up(
        self, stage: Stage, gone: Sequence[str], weight: Callable[[Unit], torch.Tensor], pool: SpillPool
    ) -> tuple[dict[str, torch.Tensor], list[str]]:
        """The last products of the experts that remain, refit to what those that go added."""
        units, mixture = {unit.name: unit for unit in stage.units}, self._mixture(stage.stats, pool)
        event = f"{stage.units[0].module}: {len(gone)} of {len(units)} experts left out"
        if not set(gone) <= set(mixture.parts):
            return {}, [f"{event}, its output is not a weighted sum of its experts': the others stay as they are"]
        lost, left = {name: weight(units[name]) for name in gone}, [name for name in mixture.parts if name not in gone]
        damping, share = mixture.best_damping(lost, left, self._dampings)
        if damping is None:
            return {}, [f"{event}, the others cannot make up for what they added"]
        found = mixture.refit(lost, left, damping, _ROUNDS)
        return {name: weight(units[name]) + change for name, change in found.changes.items()}, [
            f"{event}, the others make up for {1 - share:.0%} of what they added (on tokens held out, damping {damping:g})"
        ]

    def remaining(
        self, units: Sequence[Unit], stats: Mapping[str, Stats], weight: Callable[[Unit], torch.Tensor], feels: Mapping[str, torch.Tensor]
    ) -> dict[str, float]:
        """Share of what an expert adds that is left, on half of the tokens, where others were refit to the other half: the few, of those that add
        more than it, that share most tokens with it. So an expert stands in for lesser ones alone, and harms of several may be added.
        """
        mixture, named = self._mixture(stats), {unit.name: unit for unit in units}
        seen, unseen = mixture.halves()
        names = sorted((name for name in named if name in mixture.parts), key=lambda name: energy(weight(named[name]), stats[name]))
        helping = {name: seen.nearest(name, names[place + 1 :], _NEAREST) for place, name in enumerate(names)}

        def errors(name: str, damping: float) -> tuple[float, float]:
            lost = {name: weight(named[name])}
            found = unseen.remaining(lost, seen.refit(lost, helping[name], damping, 1).changes)
            before, after = (float((error * feels.get(name, 1.0)).sum()) for error in found)
            return before, min(before, after)

        damping = min(self._dampings, key=lambda damping: sum(errors(name, damping)[1] for name in names[::_EVERY]))
        return {name: after / before for name in names for before, after in [errors(name, damping)] if before > 0}

    @property
    def _dampings(self) -> tuple[float, ...]:
        return _DAMPINGS if self.damping is None else (self.damping,)

    @staticmethod
    def _mixture(stats: Mapping[str, Stats], pool: SpillPool | None = None) -> Mixture:
        parts = {name: mine.routed for name, mine in stats.items() if mine.routed is not None}
        return Mixture(parts, pool.admit) if pool is not None else Mixture(parts)

    def reshape(self, model: Model, script: Script, batches: Sequence[Batch], pool: SpillPool, seed: int = 0) -> Change:
        """Leave out the least of every block's experts."""
        sites = expert_sites(model, script)
        if not sites:
            raise ModelError(f"{self.key()}: {model.name} must have stacked experts, has none. Try another method.")
        energies = _energies(model, script, batches, pool, seed, self, {site.axes[-1].unit for site in sites.values()})
        wanted: dict[str, tuple[Site, SiteCutter, list[int] | None]] = {}
        for stack in dict.fromkeys(site.units[-1].module for site in sites.values()):
            mine = sorted(
                (site for site in sites.values() if site.units[-1].module == stack), key=lambda site: energies[site.axes[-1].unit]
            )  # fmt: skip
            gone = len(mine) - len(super().kept(range(len(mine))))
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
    model: Model, script: Script, batches: Sequence[Batch], pool: SpillPool, seed: int, step: Experts, wanted: set[str]
) -> Mapping[str, float]:  # fmt: skip
    """Energy of what each expert adds, times what others cannot make up for."""
    found: dict[str, float] = {}

    def survey(stage: Stage) -> None:
        weight = lambda unit: model.matrix(unit).float()
        mine = [unit for unit in stage.units if unit.name in wanted]
        left = step.remaining(mine, stage.stats, weight, {})
        found.update({unit.name: energy(weight(unit), stage.stats[unit.name]) * left.get(unit.name, 1.0) for unit in mine})

    Sweep(model, batches, script, survey, needs=step.needs, measured=wanted, seed=seed, pool=pool).finish()
    return found


def energy(weight: torch.Tensor, stats: Stats) -> float:
    """Squared sum of what an expert with the last product's ``weight`` (rows, columns) adds to its block's output over the tokens it met; before
    routing weights where these are not known.
    """
    if stats.routed is not None:
        return sum(total((met.inputs.float() @ weight.T).square().sum(1) * met.weights.square()) for met in stats.routed)
    if stats.moment is None or stats.frequency is None or not stats.count:
        return 0.0
    met = float(stats.frequency.sum()) / stats.count  # a starved one has its stack's covariance
    return met * float((weight @ stats.moment * weight).sum())
