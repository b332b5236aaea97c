"""Scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.core.errors import SettingError
from modicum.core.method import Paper
from modicum.core.parametrization import Start, State, Step
from modicum.core.settings import param
from modicum.forms import Integer
from modicum.numerics.grid import Grid
from modicum.restrict._family import beginning
from modicum.restrict._healer import Healer, straight

if TYPE_CHECKING:
    from modicum.forms import Form

# Steps of a code and of a zero point for each step of a scale: a learning rate that moves a scale by a thousandth moves a code by a fiftieth.
_PACE = 20.0
# How far from its code a latent number may begin: where it is not known, by chance, so that weights that go together do not change at once.
_INSIDE = 0.45


@dataclass(frozen=True, kw_only=True)
class Scales(Healer):
    """Scales, and where asked codes and zero points, of a grid are trained through their rounding; the grid stays what it is.

    ``(code - zero) · scale`` with codes and zero points whole numbers of the grid's bits, whose gradient is that of the numbers before rounding.

    *Shapes:* scale and zero (rows, groups); with ``codes`` a latent number (rows, columns) for each code.

    *Needs and cost:* no statistics; two trained numbers per group, and with ``codes`` one per weight.

    *Reduces to:* ``held`` on integers, with neither ``zeros`` nor ``codes``.

    *Raises:* ``SettingError`` for a form that is no grid of integers.

    *Differences from the paper:* the second phase of EfficientQAT trains scales alone; its first goes block by block, this trains end to end.

    Example:
        >>> str(Scales(codes=True))
        'scales codes=true'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="EfficientQAT: Efficient Quantization-Aware Training for Large Language Models",
        arxiv="2407.11062",
        year=2024,
        authors="Mengzhao Chen and Wenqi Shao and Peng Xu and Jiahao Wang and Peng Gao and Kaipeng Zhang and Yu Qiao and Ping Luo",
    )

    zeros: bool = param(False, "train zero points too: a step of one moves a whole group by its scale")
    codes: bool = param(False, "train codes too")
    bits: int = param(4, "bits of the grid that a weight is laid on which has none yet", between=(2, 8))
    group: int = param(0, "columns per scale of that grid, 0: a row", between=(0, 1 << 20))

    @override
    def suits(self, stored: Form) -> bool:
        return isinstance(stored, Integer)

    @override
    def begin(self, start: Start) -> State:
        """The grid as it is stored, or the nearest one of a weight that has none."""
        stored, offset = start.stored, torch.empty(start.shape).uniform_(-_INSIDE, _INSIDE, generator=start.chance)
        if stored is None:
            stored, offset = self._nearest(beginning(start), torch.float32 if start.base is None else start.base.dtype)
        if not isinstance(stored, Integer):
            raise SettingError(f"{start.unit}: must be stored as integers to train their scales, is {stored.kind}. Train it with held.")
        trained = {"scale": torch.zeros(stored.scale.shape)}
        if self.zeros and stored.zero is not None:
            trained["zero"] = torch.zeros(stored.zero.shape)
        if self.codes:
            trained["codes"] = torch.zeros(stored.codes.shape)
        return State(trained, {"offset": offset} if self.codes else {}, base=start.base, stored=stored)

    def _nearest(self, weight: torch.Tensor, dtype: torch.dtype) -> tuple[Integer, torch.Tensor]:
        """The nearest codes, and how far from them the weight lies, in codes."""
        grid = Grid(self.bits, self.group)
        scale, zero = grid.fit(weight, dtype)
        shown = Integer(torch.zeros(weight.shape, dtype=torch.uint8), scale, zero, self.bits, self.group)
        assert zero is not None
        laid = weight / shown.spread(scale).float() + shown.spread(zero)
        codes = laid.round().clamp(0, grid.top)
        return Integer(codes.to(torch.uint8), scale, zero, self.bits, self.group), (laid - codes).clamp(-_INSIDE, _INSIDE)

    def _parts(self, state: State) -> tuple[Integer, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What is stored, and scale, zero point and codes as they stand, float32, differentiable and not yet rounded."""
        stored = state.stored
        assert isinstance(stored, Integer)
        there = lambda name: _PACE * state[name] if name in state.trained else 0.0
        offset = state["offset"] if self.codes else 0.0
        scale = stored.scale.float() * (1 + state["scale"])
        zero = torch.full((1, 1), 2.0 ** (stored.bits - 1)) if stored.zero is None else stored.zero.float()
        return stored, scale, zero + there("zero"), stored.codes.float() + (offset + there("codes"))

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The exact value on the grid, with the gradient of its numbers before they are rounded."""
        stored, scale, zero, codes = self._parts(state)
        soft = (codes - stored.spread(zero)) * stored.spread(scale)
        return straight(soft, self.form(state).dense().float())

    @override
    def form(self, state: State) -> Form:
        """Integers of the same bits and groups."""
        with torch.no_grad():
            stored, scale, zero, codes = self._parts(state)
        whole = lambda value: value.round().clamp(0, 2**stored.bits - 1).to(torch.uint8)
        return Integer(
            whole(codes), scale.to(stored.dtype), None if stored.zero is None else whole(zero), stored.bits, stored.group
        )  # fmt: skip
