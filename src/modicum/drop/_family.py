"""The drop family: a survey of the original model decides which groups or blocks go; what remains is told to the assembly as one change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from modicum.core.errors import ModelError
from modicum.core.method import Change, Method
from modicum.core.unit import Site, Stats
from modicum.data.splits import Batch
from modicum.forms import Cut, Dense
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
class CutDropper(Dropper):
    """Methods that rank the groups of coupled cuts; the family cuts globally and folds what is lost into biases."""

    def rank(self, weight: torch.Tensor, stats: Stats, groups: Sequence[Sequence[int]]) -> torch.Tensor:
        """Score (groups,) of a cut from its consumer's float32 weight (rows, columns) and input statistics; the lowest go."""
        raise NotImplementedError

    def select(self, scores: dict[str, torch.Tensor], sizes: dict[str, int]) -> dict[str, list[int]]:
        """Groups kept per site, from scores by site and the number of weights one group of the site holds."""
        raise NotImplementedError

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
        consumers = {site.axes[-1].unit: site for site in sites}
        scores: dict[str, torch.Tensor] = {}
        lost: dict[str, Stats] = {}

        def survey(stage: Stage) -> None:
            for unit in stage.units:
                if unit.name in consumers:
                    site, stats = consumers[unit.name], stage.stats[unit.name]
                    scores[site.name] = self.rank(model.matrix(unit).float(), stats, site.axes[-1].groups)
                    lost[site.name] = stats

        Sweep(model, batches, script, survey, needs=self.needs, seed=seed, pool=pool).finish()
        sizes = {site.name: _group_size(site) for site in sites}
        return self._cut(model, sites, self.select(scores, sizes), lost)

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
                missing = self.compensate(weight.float(), lost[site.name], ~mask)
                if missing is not None:
                    name = f"{unit.module}.bias"
                    before = model.weights.read(name).float() if name in model.weights.first else 0.0
                    change.biases[unit.module] = (before + missing).to(unit.dtype)
        return change


def _group_size(site: Site) -> int:
    """Weights that vanish with one group."""
    total = 0
    for unit, axis in zip(site.units, site.axes):
        other = unit.shape[1] if axis.side == "rows" else unit.shape[0]
        total += other * max(len(group) for group in axis.groups)
    return total
