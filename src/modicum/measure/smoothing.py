"""Smoothing (SmoothQuant, arXiv 2211.10438): columns of an input that reach far give some of it to the weights that read them.

Eight bits hold an input the worse the further its columns reach apart, and a weight hardly at all. So column j of an input is divided by
``s_j = max|X_j|^α / max|W_j|^(1-α)``, over all weights W that read it, and their columns j are multiplied by it: the product is the same. The divisor
moves into what makes the input, found by trying (`sweep.makers`): a norm's entries, or the rows of an earlier projection. Steps are whole octaves,
so that no digit of any weight changes and outputs are the same bits; nearer ones would lose that, and gain less than half an octave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from modicum.core.errors import listed
from modicum.core.method import Need
from modicum.core.unit import Unit
from modicum.data.splits import Batch, one_row
from modicum.judge.quality import streamed
from modicum.measure.moving import same_outputs, with_values
from modicum.models.model import Model
from modicum.runtime.compute import Compute
from modicum.sweep import Script, Stage, Sweep
from modicum.sweep.makers import Maker, makers, raised

Names = tuple[str, ...]
_KINDS = ("linear", "conv1d")


def smoothed(model: Model, script: Script, batches: Sequence[Batch], alpha: float, compute: Compute) -> tuple[Model, list[str]]:
    """The model with smoothed inputs, whose outputs are the same bits, and what there is to tell; ``batches`` say how far columns reach."""
    stages = [stage for stage in script.stages if all(_movable(model.units[name], script) for name in stage)]
    found = makers(model, script, batches[0], stages)
    moves = _Moves(model, found, _largest(model, script, batches, found), alpha)
    other = compute.of(with_values(model.stored, moves.values()))
    row = one_row(batches[0])
    before, after = ([output for _, output in streamed(each.twin(), [row], script)] for each in (model, other))
    if not moves.exact or not same_outputs(before, after):
        return model, ["smoothing: was left out, the model with moved factors does not give the outputs of before."]
    left = [stage[0] for stage in script.stages if stage not in found and model.units[stage[0]].kind in _KINDS]
    told = f"smoothing: factors moved into what makes the input of {len(found)} sets of weights (alpha {alpha:g})"
    return other, [told + (f"; of {len(left)} nothing makes it alone: {listed(left)}." if left else ".")]


def _movable(unit: Unit, script: Script) -> bool:
    return unit.kind in _KINDS and not unit.aliases and not script.data_free(unit)


def _largest(model: Model, script: Script, batches: Sequence[Batch], found: Mapping[Names, Maker]) -> dict[str, torch.Tensor]:
    """The largest magnitude of each column of the inputs of stages (columns,), by the first of their units."""
    largest: dict[str, torch.Tensor] = {}

    def treat(stage: Stage) -> None:
        inputs = stage.stats[stage.units[0].name].inputs
        if inputs:
            largest[stage.units[0].name] = torch.stack([rows.abs().amax(0).float() for rows in inputs if len(rows)]).amax(0)

    wanted = {name for stage in found for name in stage}
    Sweep(model, batches, script, treat, needs={Need.INPUTS}, measured=wanted).finish(wanted)
    return largest


class _Moves:
    """By parameter and axis the octaves by which rows, entries and columns are multiplied."""

    def __init__(self, model: Model, found: Mapping[Names, Maker], largest: Mapping[str, torch.Tensor], alpha: float):
        self.model, self.alpha, self.exact = model, alpha, True
        self.rows: dict[str, torch.Tensor] = {}
        self.columns: dict[str, torch.Tensor] = {}
        self.units = {unit.parameter: unit for unit in model.units.values()}
        for stage, maker in reversed(list(found.items())):  # rows that move belong to weights that are read by those before
            if stage[0] in largest and self.rows.keys().isdisjoint(maker.parameters):
                self._move(stage, maker, largest[stage[0]])

    def _move(self, stage: Names, maker: Maker, largest: torch.Tensor) -> None:
        weights = torch.stack([self._matrix(self.model.units[name]).abs().amax(0) for name in stage]).amax(0)
        count = int(maker.rows.max()) + 1
        reach, weigh = (torch.zeros(count).scatter_reduce(0, maker.rows, value, "amax") for value in (largest, weights))
        octaves = self.alpha * reach.log2() - (1 - self.alpha) * weigh.log2()
        known = octaves.isfinite()
        if not bool(known.any()):
            return
        octaves = torch.where(known, octaves - octaves[known].median(), 0).round().long()
        self.rows |= dict.fromkeys(maker.parameters, -octaves)
        self.columns |= {self.model.units[name].parameter: octaves[maker.rows] for name in stage}

    def _matrix(self, unit: Unit) -> torch.Tensor:
        matrix = self.model.matrix(unit).float()
        rows = self.rows.get(unit.parameter)
        return matrix if rows is None else torch.ldexp(matrix, rows[:, None])

    def values(self) -> dict[str, torch.Tensor]:
        """New values of all parameters that are touched."""
        found = {}
        for name in self.rows.keys() | self.columns.keys():
            value, unit = self.model.stored.weights.read(name), self.units.get(name)
            moved = {"rows": self.rows.get(name), "columns": self.columns.get(name)}
            found[name] = raised(value, unit, **moved)
            back = raised(found[name], unit, **{side: None if octaves is None else -octaves for side, octaves in moved.items()})
            self.exact &= torch.equal(back, value)
        return found
