"""The drop family: a survey of the original model decides which groups or blocks go; what remains is told to the assembly as one change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from modicum.core.errors import ModelError, UnsuitableError
from modicum.core.method import Change, Method
from modicum.core.settings import param
from modicum.core.unit import Site, Stats, Unit
from modicum.data.splits import Batch
from modicum.drop._spans import least, span_changes
from modicum.forms import Cut, Dense, Form
from modicum.models.model import Model
from modicum.sweep import Script, Stage, Sweep
from modicum.sweep.coupling import coupled_cuts, kept_rows
from modicum.sweep.spill import SpillPool


@dataclass(frozen=True, kw_only=True)
class Dropper(Method):
    """Methods that decide over the whole model, from one survey."""

    treats = frozenset({"cut", "span"})

    def reshape(self, model: Model, script: Script, batches: Sequence[Batch], pool: SpillPool, seed: int = 0) -> Change:
        """Forms of the units that change, biases, and blocks dropped. Raises ``ModelError`` where the model has nothing to drop."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Spanner(Dropper):
    """Methods that leave out a span of blocks; ``first`` says which, or that the method may choose."""

    count: int = param(1, "blocks to leave out", between=(1, 10_000), dial=True)
    first: int | None = param(None, "place of the first of them in call order; none: the span that changes least", between=(0, 10_000))

    # Whether a weight of the block before the span is changed.
    folds: ClassVar[bool] = False

    def spares(self, script: Script, span: Sequence[str]) -> bool:
        """Whether blocks may be left out without a change of what is to stay as it is."""
        before = script.blocks[max(script.blocks.index(span[0]) - 1, 0)]
        return script.may_go(span) and not (self.folds and before in script.fixed)

    def span(self, model: Model, script: Script, batches: Sequence[Batch], pool: SpillPool) -> tuple[tuple[str, ...], str]:
        """The blocks to leave out, and in words why. Raises ``ModelError`` where they cannot be."""
        if self.first is None:
            changes = span_changes(model, script, batches, self.count, pool)
            chosen = least(changes)
            return chosen, f"cosine distance {changes[chosen]:.4f}"
        span = tuple(script.blocks[self.first : self.first + self.count])
        lists = {model.blocks[name].list_name for name in script.blocks[max(self.first - 1, 0) : self.first + self.count]}
        if self.first == 0 or len(span) < self.count or not script.may_go(span) or len(lists) > 1:
            raise UnsuitableError(
                f"{self}: must name blocks that can be dropped after another of their list, and hold nothing that is kept, does not. Choose others."
            )
        return span, f"as first={self.first} says"


@dataclass(frozen=True, kw_only=True)
class SiteCutter(Dropper):
    """Methods that cut one coupled cut at a time from the covariance of its consumer's inputs, so that cuts may stand on a menu."""

    # Kinds of cut the method is for, as sites end in.
    cuts: ClassVar[frozenset[str]] = frozenset({"ffn", "heads"})

    keep: float = param(0.75, "share of each cut's groups kept", between=(0.0, 1.0), dial=True)
    multiple: int = param(1, "what the number of groups kept is rounded to a multiple of", between=(1, 65536))

    def suits(self, site: Site) -> bool:
        """Whether the method is for this kind of cut."""
        return site.name.rpartition(":")[2] in self.cuts

    def order(self, weight: torch.Tensor, covariance: torch.Tensor, groups: Sequence[Sequence[int]]) -> list[int]:
        """Groups in the order they go, from the consumer's float32 weight (rows, columns) and its inputs' covariance."""
        raise NotImplementedError

    def refit(self, weight: torch.Tensor, covariance: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """The consumer's weight on the columns that remain (rows, kept)."""
        return weight[:, columns]

    def make_up(
        self, stage: Stage, gone: Sequence[str], weight: Callable[[Unit], torch.Tensor], pool: SpillPool
    ) -> tuple[dict[str, torch.Tensor], list[str]]:
        """New weights (rows, columns) of units of a stage that make up for the consumers ``gone`` whole, and what there is to tell; ``weight`` of
        any unit is float32.
        """
        return {}, []

    def remaining(
        self, units: Sequence[Unit], stats: Mapping[str, Stats], weight: Callable[[Unit], torch.Tensor], feels: Mapping[str, torch.Tensor]
    ) -> dict[str, float]:
        """Share of each consumer's harm that is left where it alone goes whole and others make up for it; those not named keep theirs. ``feels``
        gives a unit's squared gradient in each output row (rows,).
        """
        return {}

    def kept(self, order: Sequence[int]) -> list[int]:
        """Groups that remain, at least one, from the order in which they go."""
        count = max(1, self.multiple * round(self.keep * len(order) / self.multiple))
        return sorted(order[max(len(order) - count, 0) :])

    def _required(self, sites: list[Site], model: Model) -> list[Site]:
        if not sites:
            raise ModelError(f"{self.key()}: {model.name} must have coupled cuts (heads, channels), none was found. Try another method.")
        return sites


Wanted = Mapping[str, tuple[Site, SiteCutter, list[int] | None]]
"""Cuts by site name: the site, the method, and the groups kept or None to choose them."""


def cut_sites(
    model: Model, script: Script, batches: Sequence[Batch], pool: SpillPool, wanted: Wanted, *, start: Mapping[str, Form] | None = None,
    seed: int = 0,
) -> Change:  # fmt: skip
    """Carry out cuts with one survey of the original model.

    ``start`` holds forms that a change of depth has made already; the cut works on their values.
    """
    (change,) = cut_each(model, script, batches, pool, [(wanted, start or {})], seed=seed)
    return change


def cut_each(
    model: Model, script: Script, batches: Sequence[Batch], pool: SpillPool, asked: Sequence[tuple[Wanted, Mapping[str, Form]]], *, seed: int = 0
) -> list[Change]:  # fmt: skip
    """What each of several alternatives makes, its cuts and the forms it starts from, with one survey for all."""
    cuttings = [_Cutting(model, wanted, start, pool) for wanted, start in asked]
    needs = frozenset().union(*(cutting.needs for cutting in cuttings))
    measured = {name for cutting in cuttings for name in cutting.consumers}

    def survey(stage: Stage) -> None:
        for cutting in cuttings:
            cutting.carry_out(stage)

    Sweep(model, batches, script, survey, needs=needs, measured=measured, seed=seed, pool=pool).finish()
    return [cutting.change for cutting in cuttings]


_ELSE = "Leave the cut out, or allow more memory."


class _Cutting:
    """The change that some cuts make, stage by stage of one survey."""

    def __init__(self, model: Model, wanted: Wanted, start: Mapping[str, Form], pool: SpillPool):
        self.model, self.start, self.pool, self.change = model, start, pool, Change()
        self.consumers = {site.axes[-1].unit: (site, step, kept) for site, step, kept in wanted.values()}
        self.needs = frozenset().union(*(step.needs for _, step, _ in wanted.values()))

    def carry_out(self, stage: Stage) -> None:
        """Make what falls to the units of a stage."""
        gone = [unit.name for unit in stage.units if unit.name in self.consumers and not self._cut(unit, stage.stats[unit.name])]
        if gone:
            _, step, _ = self.consumers[gone[0]]
            made, events = step.make_up(stage, gone, lambda unit: self._begun(unit).float(), self.pool)
            dtype = lambda name: self._begun(self.model.units[name]).dtype
            self.change.forms |= {name: Dense(value.to(dtype(name)).contiguous()) for name, value in made.items()}
            self.change.events += events

    def _cut(self, consumer: Unit, stats: Stats) -> list[int]:
        """Cut one site; the groups that remain."""
        site, step, kept = self.consumers[consumer.name]
        if stats.covariance is None:
            raise ModelError(
                f"{site.name}: must be cut by the whole covariance of {consumer.name}'s inputs, which did not fit in memory. {_ELSE}"
            )
        weight, groups = self._begun(consumer), site.axes[-1].groups
        chosen = step.kept(step.order(weight.float(), stats.covariance, groups)) if kept is None else kept
        columns = kept_rows(site.axes[-1], chosen, consumer.shape[1])
        refit = step.refit(weight.float(), stats.covariance, columns.nonzero()[:, 0]).to(weight.dtype)
        self.change.forms[consumer.name] = Cut(Dense(refit.contiguous()), None, columns)
        for unit, axis in zip(site.units[:-1], site.axes[:-1]):
            mask = kept_rows(axis, chosen, unit.shape[0])
            self.change.forms[unit.name] = Cut(Dense(self._begun(unit)[mask].contiguous()), mask, None)
        self.change.events.append(f"{site.name}: keeps {len(chosen)} of {len(groups)} groups")
        return chosen

    def _begun(self, unit: Unit) -> torch.Tensor:
        return self.start[unit.name].dense() if unit.name in self.start else self.model.matrix(unit)


@dataclass(frozen=True, kw_only=True)
class CutDropper(Dropper):
    """Methods that rank the groups of coupled cuts; the family cuts globally and folds what is lost into biases."""

    keep: float = param(0.8, "share of the cuts' weights kept", between=(0.0, 1.0), dial=True)

    def rank(self, weight: torch.Tensor, stats: Stats, groups: Sequence[Sequence[int]]) -> torch.Tensor:
        """Score (groups,) of a cut from its consumer's float32 weight (rows, columns) and input statistics; the lowest go."""
        raise NotImplementedError

    def select(self, scores: dict[str, torch.Tensor], sizes: dict[str, int]) -> dict[str, list[int]]:
        """Groups kept per site, from scores by site and the number of weights one group of the site holds; by default globally from the top."""
        return from_the_top(scores, sizes, self.keep)

    def compensate(self, weight: torch.Tensor, stats: Stats, gone: torch.Tensor) -> torch.Tensor | None:
        """What the output misses on average without the columns ``gone`` (boolean), (rows,); None for no compensation."""
        return None

    def reshape(self, model: Model, script: Script, batches: Sequence[Batch], pool: SpillPool, seed: int = 0) -> Change:
        """Survey, choose, and cut."""
        sites = coupled_cuts(model, script, batches[0])
        if not sites:
            raise ModelError(
                f"{self.key()}: the model must have coupled cuts (heads, feed-forward channels), none was found. Try another method."
            )
        scores, lost = self.survey(model, script, batches, pool, sites, seed)
        told = [site for site in sites if site.name in scores]
        if not told:
            raise ModelError(
                f"{self.key()}: {model.name} must have cuts whose consumers' gradients are seen, has none. Try another method."
            )
        return self._cut(model, told, self.select(scores, {site.name: group_size(site) for site in told}), lost)

    def survey(
        self, model: Model, script: Script, batches: Sequence[Batch], pool: SpillPool, sites: Sequence[Site], seed: int
    ) -> tuple[dict[str, torch.Tensor], dict[str, Stats]]:  # fmt: skip
        """Scores (groups,) by site, by default of ``rank`` from one forward sweep, and what it measured of each consumer's inputs."""
        consumers = {site.axes[-1].unit: site for site in sites}
        scores: dict[str, torch.Tensor] = {}
        lost: dict[str, Stats] = {}

        def treat(stage: Stage) -> None:
            for unit in stage.units:
                if unit.name in consumers:
                    site, stats = consumers[unit.name], stage.stats[unit.name]
                    scores[site.name] = self.rank(model.matrix(unit).float(), stats, site.axes[-1].groups)
                    lost[site.name] = stats

        Sweep(model, batches, script, treat, needs=self.needs, seed=seed, pool=pool).finish()
        return scores, lost

    def _cut(self, model: Model, sites: list[Site], kept: dict[str, list[int]], lost: dict[str, Stats]) -> Change:
        change = Change()
        for site in sites:
            if len(kept[site.name]) == len(site.axes[-1].groups):
                continue
            change.events.append(f"{site.name}: keeps {len(kept[site.name])} of {len(site.axes[-1].groups)} groups")
            for unit, axis in zip(site.units, site.axes):
                weight = model.matrix(unit)
                if axis.side == "rows":
                    mask = kept_rows(axis, kept[site.name], unit.shape[0])
                    change.forms[unit.name] = Cut(Dense(weight[mask].contiguous()), mask, None)
                    continue
                mask = kept_rows(axis, kept[site.name], unit.shape[1])
                change.forms[unit.name] = Cut(Dense(weight[:, mask].contiguous()), None, mask)
                missing = self.compensate(weight.float(), lost[site.name], ~mask) if site.name in lost else None
                if missing is not None:
                    name = f"{unit.module}.bias"
                    before = model.weights.read(name).float() if name in model.weights.first else 0.0
                    change.biases[unit.module] = (before + missing).to(unit.dtype)
        return change


def from_the_top(scores: Mapping[str, torch.Tensor], sizes: Mapping[str, int], keep: float) -> dict[str, list[int]]:
    """Groups kept per site, the highest scores of all sites first, until a share of all their weights is met; at least one of each site."""
    ranked = sorted(((float(score), site, group) for site, found in scores.items() for group, score in enumerate(found)), reverse=True)
    kept: dict[str, list[int]] = {site: [int(found.argmax())] for site, found in scores.items()}
    total = sum(sizes[site] * len(found) for site, found in scores.items())
    held = sum(sizes[site] for site in kept)
    for _, site, group in ranked:
        if group not in kept[site] and held + sizes[site] <= keep * total * (1 + 1e-9):
            kept[site].append(group)
            held += sizes[site]
    return {site: sorted(found) for site, found in kept.items()}


def group_size(site: Site) -> int:
    """Weights that vanish with one group."""
    total = 0
    for unit, axis in zip(site.units, site.axes):
        other = unit.shape[1] if axis.side == "rows" else unit.shape[0]
        total += other * max(len(group) for group in axis.groups)
    return total
