"""LSQ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Start, State, Step
from modicum.core.settings import param
from modicum.forms import Integer
from modicum.restrict._family import Restriction, Shapes, beginning, scaled

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Lsq(Restriction):
    """Weights on a grid whose step, one per row, is learnt with them.

    ``round(clip(W / s)) · s`` with codes from -2^(bits-1) to 2^(bits-1) - 1; the rounding passes gradients on, to weights inside the grid and to the
    step, whose own are divided by the root of the row's entries times the largest code.

    *Shapes:* latent (rows, columns), steps (rows, 1), trained.

    *Needs and cost:* no statistics; rows · columns + rows trained numbers, of which ``bits`` each and a step per row are stored.

    *Reduces to:* the plain weight where that lies on the grid already.

    *Raises:* ``SettingError`` for weights whose scale overflows.

    *Differences from the paper:* inputs stay floats, and a row has a step of its own where the paper has one for a layer.

    Example:
        >>> str(Lsq(bits=3))
        'lsq bits=3'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Learned Step Size Quantization",
        arxiv="1902.08153",
        year=2019,
        authors="Steven K. Esser and Jeffrey L. McKinstry and Deepika Bablani and Rathinakumar Appuswamy and Dharmendra S. Modha",
    )

    bits: int = param(4, "bits of a code", between=(2, 8), dial=True)

    @property
    def _top(self) -> int:
        return 2 ** (self.bits - 1) - 1

    @override
    def begin(self, start: Start) -> State:
        """The weight, and twice its mean magnitude over the root of the largest code."""
        latent = beginning(start)
        step = scaled(2 * latent.abs().mean(1, keepdim=True) / math.sqrt(self._top), start.unit).clamp_min(1e-8)
        return State({"latent": latent, "steps": step}, base=start.base)

    def _steps(self, state: State) -> torch.Tensor:
        return state["steps"].abs().clamp_min(1e-8)

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """Codes times steps."""
        latent, steps = state["latent"], self._steps(state)
        slow = 1 / math.sqrt(latent.shape[1] * self._top)
        held = _Scaled.apply(steps, slow)
        scaled = (latent / held).clamp(-self._top - 1, self._top)
        return _Rounded.apply(scaled) * held

    @override
    def form(self, state: State) -> Form:
        """Codes and a step per row."""
        steps = self._steps(state).detach()
        codes = (state["latent"].detach() / steps).clamp(-self._top - 1, self._top).round() + self._top + 1
        return Integer(codes.to(torch.uint8), steps.contiguous(), None, bits=self.bits, group=0)

    @override
    def outlines(self, shapes: Shapes) -> dict[str, Form]:
        """Codes and a step per row."""
        make = lambda rows, columns: Integer(
            torch.zeros(rows, columns, dtype=torch.uint8), torch.ones(rows, 1), None, bits=self.bits, group=0
        )
        return {unit: make(*shape) for unit, shape in shapes.items()}


class _Rounded(torch.autograd.Function):
    """Rounds, and passes the gradient on."""

    @staticmethod
    def forward(ctx, value: torch.Tensor) -> torch.Tensor:
        return value.round()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return gradient


class _Scaled(torch.autograd.Function):
    """Itself, with its gradient times a factor."""

    @staticmethod
    def forward(ctx, value: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return gradient * ctx.factor, None
