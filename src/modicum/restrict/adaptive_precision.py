"""Adaptive precision training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Revision, Start, State, Step
from modicum.core.settings import param
from modicum.forms import Integer
from modicum.restrict._family import Restriction, Shapes, beginning, through

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class AdaptivePrecision(Restriction):
    """Fixed-point weights whose word length falls as long as no information is lost, and rises where gradients ask for it.

    Every ``every`` updates a weight takes the fewest bits at which the histogram of its rounded entries diverges from that of the entries by at most
    ``divergence`` nats, and one more where its gradients cancelled: where ``Σ |g|² / |Σ g|²`` since the last switch is above ``diverse``.
    Steps are powers of two, the finest that the largest entry allows.

    *Shapes:* latent (rows, columns), trained; bits (1,), between 2 and ``bits``, and fraction (1,), the step's negative power of two.

    *Needs and cost:* whole weights' gradients on every update; rows · columns trained numbers, of which ``bits`` each are stored.

    *Reduces to:* one word length for all with ``divergence=0``.

    *Raises:* nothing of its own.

    *Differences from the paper:* rounding is to the nearest, and words have at most eight bits.

    Example:
        >>> str(AdaptivePrecision(bits=6))
        'adaptive_precision bits=6'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Adaptive Precision Training (AdaPT): A dynamic fixed point quantized training approach for DNNs",
        arxiv="2107.13490",
        year=2021,
        authors="Lorenz Kummer and Kevin Sidak and Tabea Reichmann and Wilfried Gansterer",
    )

    bits: int = param(8, "bits of a word at most", between=(2, 8), dial=True)
    every: int = param(50, "updates from one switch to the next", between=(1, 10**9))
    divergence: float = param(0.05, "nats by which histograms may diverge", between=(0.0, 10.0))
    bins: int = param(32, "bins of a histogram", between=(2, 4096))
    diverse: float = param(1.0, "diversity of gradients above which a word gains a bit", between=(0.0, 1e9))

    @override
    def begin(self, start: Start) -> State:
        """The weight at the full word length."""
        latent, none = beginning(start), torch.zeros(1)
        frozen = {
            "bits": torch.tensor([self.bits]),
            "fraction": _fraction(latent, self.bits),
            "squares": none,
            "sum": torch.zeros_like(latent),
        }
        return State({"latent": latent}, frozen)

    def _codes(self, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        """Whole numbers (rows, columns), and their step (1,)."""
        return _rounded(state["latent"].detach(), int(state["bits"]), state["fraction"])

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """Words times their step; the gradient is the latent weight's."""
        codes, size = self._codes(state)
        return through(state["latent"], codes * size)

    @override
    def watches(self, step: Step) -> bool:
        """Always."""
        return step.number > 0

    @override
    def revise(self, states: Mapping[str, State], gradients: Mapping[str, torch.Tensor], budget: int, step: Step) -> Revision | None:
        """Gradients are summed; on the steps that switch, word lengths are found anew, and on all steps the range follows the weight."""
        revised = {}
        for unit, gradient in gradients.items():
            state, latent = states[unit], states[unit]["latent"].detach()
            total, squares = state["sum"] + gradient, state["squares"] + gradient.square().sum()
            bits = int(state["bits"])
            if step.number % self.every == 0 and step.number < step.total:
                bits = min(self.bits, self.fewest(latent) + (float(squares) > self.diverse * float(total.square().sum())))
                total, squares = torch.zeros_like(total), torch.zeros_like(squares)
            frozen = {"bits": torch.tensor([bits]), "fraction": _fraction(latent, bits), "squares": squares, "sum": total}
            revised[unit] = state.having(frozen=frozen)
        return Revision(revised) if revised else None

    def fewest(self, latent: torch.Tensor) -> int:
        """The shortest word that loses no information by the histograms; the longest where all do."""
        high = float(latent.abs().max().clamp_min(1e-30))
        count = lambda values: torch.histc(values, self.bins, -high, high) / values.numel()
        whole = count(latent)
        for bits in range(2, self.bits):
            codes, size = _rounded(latent, bits, _fraction(latent, bits))
            found = count(codes * size).clamp_min(1e-6)
            if float(torch.special.xlogy(whole, whole / found).sum()) <= self.divergence:
                return bits
        return self.bits

    @override
    def form(self, state: State) -> Form:
        """Words under one step."""
        (codes, size), bits = self._codes(state), int(state["bits"])
        return Integer((codes + 2 ** (bits - 1)).to(torch.uint8), size.reshape(1, 1), None, bits=bits, group=0)

    @override
    def outlines(self, shapes: Shapes) -> dict[str, Form]:
        """At the full word length: no more is ever stored."""
        make = lambda rows, columns: Integer(torch.zeros(rows, columns, dtype=torch.uint8), torch.ones(1, 1), None, bits=self.bits, group=0)
        return {unit: make(*shape) for unit, shape in shapes.items()}


def _fraction(latent: torch.Tensor, bits: int) -> torch.Tensor:
    """Bits behind the point of the finest step at which the largest entry is no overflow."""
    largest = max(float(latent.abs().max()), 1e-30)
    return torch.tensor([math.floor(math.log2((2 ** (bits - 1) - 1) / largest))])


def _rounded(latent: torch.Tensor, bits: int, fraction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    top, size = 2 ** (bits - 1) - 1, torch.ldexp(torch.ones(1), -fraction)
    return (latent / size).round().clamp(-top - 1, top), size
