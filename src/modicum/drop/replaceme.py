"""ReplaceMe: one linear map stands in for a span of blocks, folded into the projection before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from modicum.core.errors import UnsuitableError
from modicum.core.method import Change, Need, Paper
from modicum.core.settings import param
from modicum.core.unit import Unit
from modicum.data.splits import Batch
from modicum.drop._family import Spanner
from modicum.drop._spans import hidden
from modicum.forms import Dense
from modicum.models.model import Model
from modicum.numerics.threads import single_threaded
from modicum.sweep import Script, Stage, Sweep
from modicum.sweep.coupling import adds_output
from modicum.sweep.spill import SpillPool


@dataclass(frozen=True, kw_only=True)
class Replaceme(Spanner):
    """Drop the span of least cosine change and fold its least-squares linear stand-in into the block before.

    With M the last projection's output in the block before the span, Y the rest of that block's output, and L the output after the span:
    ``T = argmin ‖M T + Y - L‖²``, folded as ``W ← Tᵀ W``: no parameter is added.

    *Shapes:* M, Y, L (tokens, width), T (width, width). *Needs and cost:* block outputs; two surveys and one solve of size width.
    *Reduces to:* plain block drop with T the identity. *Raises:* ``UnsuitableError`` where the block before the span does not end by adding
    one projection's output.

    *Differences from the paper:* a ridge of ``damping`` times the mean energy of M pulls T towards the identity, not towards zero.

    Example:
        >>> str(Replaceme(count=2))
        'replaceme count=2'

    """

    paper = Paper(
        "ReplaceMe: Network Simplification via Depth Pruning and Transformer Block Linearization",
        "2505.02819",
        2025,
        "Shopkhoev, Dmitriy and others",
    )
    needs = frozenset({Need.BLOCK_OUTPUTS, Need.INPUTS})
    menu = ({},)
    folds = True

    damping: float = param(0.01, "ridge, as a share of the mean energy of M", between=(0.0, 100.0))

    def reshape(self, model: Model, script: Script, batches: Sequence[Batch], pool: SpillPool, seed: int = 0) -> Change:
        """Survey, solve and fold."""
        span, why = self.span(model, script, batches, pool)
        names = [name for name in script.blocks if model.blocks[name].list_name == model.blocks[span[0]].list_name]
        before = names[names.index(span[0]) - 1]
        if not self.spares(script, span):
            raise UnsuitableError(f"{before}: its last projection would change, and a weight of it is kept. Use blocks instead.")
        survey = _Survey(model, script, batches, before, span[-1])
        if not adds_output(model, script, batches[0], before, survey.unit.module):
            raise UnsuitableError(
                f"{before}: must end by adding {survey.unit.module} for a stand-in to be folded into it. Use blocks instead."
            )
        Sweep(model, batches, script, survey.treat, needs={Need.INPUTS}, seed=seed, pool=pool, on_block=survey.on_block).finish()
        unit, transform = survey.unit, survey.solve(self.damping)
        weight = model.matrix(unit)
        change = Change(forms={unit.name: Dense((transform.T @ weight.float()).to(weight.dtype))}, dropped=span)
        bias = f"{unit.module}.bias"
        if bias in model.weights.first:
            value = model.weights.read(bias)
            change.biases[unit.module] = (transform.T @ value.float()).to(value.dtype)
        change.events.append(f"{span[0]} to {span[-1]}: replaced by a linear map in {unit.module}, {why}")
        return change


class _Survey:
    """Normal equations of the stand-in: MᵀM and Mᵀ(L - Y)."""

    def __init__(self, model: Model, script: Script, batches: Sequence[Batch], before: str, last: str):
        inside = [name for stage in script.stages for name in stage if script.block_of.get(name) == before]
        self.model, self.before, self.last, self.unit = model, before, last, self._last(model, inside, before)
        self.batches, self.cover = batches, script.masks.get(self.unit.module)
        self.projected: list[torch.Tensor] = []
        self.rest: list[torch.Tensor] = []
        width = self.unit.shape[0]
        self.gram, self.cross = torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)

    @staticmethod
    def _last(model: Model, inside: list[str], before: str) -> Unit:
        units = [model.units[name] for name in inside if model.units[name].kind in ("linear", "conv1d")]
        if not units or inside[-1] != units[-1].name:
            raise UnsuitableError(f"{before}: must end with one projection for a stand-in to be folded into it. Use blocks instead.")
        return units[-1]

    def treat(self, stage: Stage) -> None:
        """Keep the projection's output."""
        for unit in stage.units:
            if unit.name == self.unit.name:
                bias = f"{unit.module}.bias"
                added = self.model.weights.read(bias).float() if bias in self.model.weights.first else 0.0
                weight = self.model.matrix(unit).float()
                self.projected = [rows.float() @ weight.T + added for rows in stage.stats[unit.name].inputs or []]

    def on_block(self, name: str, outputs: dict[int, Any]) -> None:
        """Keep the rest of the block's output; at the span's end, accumulate."""
        if name == self.before:
            flat = [self._rows(index, outputs[index]) for index in sorted(outputs)]
            self.rest = [whole - part for whole, part in zip(flat, self.projected)]
        if name == self.last:
            for place, index in enumerate(sorted(outputs)):
                after = self._rows(index, outputs[index])
                part = self.projected[place]
                if after.shape != part.shape:
                    raise UnsuitableError(f"{self.before}: must give the tokens that {name} gives, gives others. Use blocks instead.")
                self.gram += (part.T @ part).double()
                self.cross += (part.T @ (after - self.rest[place])).double()
            self.projected, self.rest = [], []

    def _rows(self, index: int, output: Any) -> torch.Tensor:
        """A block's output, one row for each token that is no padding."""
        value = hidden(output).cpu().float()
        real = None if self.cover is None else self.cover.real(self.batches[index], value.shape[:-1])
        return value.flatten(0, -2) if real is None else value[real.cpu().expand(value.shape[:-1])]

    def solve(self, damping: float) -> torch.Tensor:
        """T (width, width), float32, pulled towards the identity."""
        ridge = damping * self.gram.diagonal().mean().clamp_min(1e-30) * torch.eye(len(self.gram), dtype=torch.float64)
        with single_threaded():
            return torch.linalg.solve(self.gram + ridge, self.cross + ridge).float()
