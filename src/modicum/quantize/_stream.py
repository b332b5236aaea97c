"""Codes of several rates of one weight, solved side by side, each under a damping that its rate bears."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch

from modicum.core.unit import Stats
from modicum.forms import Coded, Form
from modicum.numerics.coding import PATHS, coded
from modicum.quantize._factor import factored

# Bits that codes on paths take more than the best code, most doublings of a damping, and times that one is found from the one before.
_LOST, _DOUBLINGS, _TURNS = 0.17, 10, 2
# By what a damping grows under which codes do not settle on their size, and how often.
_BY, _FIRMER = 4, 5
# Bits by which codes without paths have the error of those with: what is made to compare options is coded so, in an eighth of the time.
_EVEN = 0.165


class Rated(Protocol):
    """A method that codes a weight at a rate."""

    @property
    def rate(self) -> float:
        """Bits per weight."""


R = TypeVar("R", bound=Rated)


def with_those_ahead(
    step: R, weight: torch.Tensor, stats: Stats, alike: Callable[[object], bool], make: Callable[[Sequence[R]], Sequence[Form]]
) -> Form:  # fmt: skip
    """The form of ``step`` on a weight; of those to come of the same weight that are ``alike`` it is made with them, and theirs are kept."""
    known, form = stats.made.pop(step, (None, None))
    if known is not None and torch.equal(known, weight):
        return form  # type: ignore[return-value]
    steps = [each for each in dict.fromkeys(stats.ahead[stats.ahead.index(step) :]) if alike(each)] if step in stats.ahead else [step]
    stats.made |= {each: (weight, form) for each, form in zip(steps, make(steps))}
    return stats.made.pop(step)[1]


def solved(
    steps: Sequence[R], weight: torch.Tensor, stats: Stats, dtype: torch.dtype, damping: float, raised: torch.Tensor | None, paths: bool,
) -> list[Form]:  # fmt: skip
    """A form of float32 ``weight`` (rows, columns) for each step, columns after one absorbing its error under the moment of ``stats``.

    Where others are to come of the same weight, which is to compare them, what ``paths`` would give has its error and not its bytes.
    """
    assert stats.moment is not None
    found: dict[R, Form] = {}
    mean = float(stats.moment.diagonal().double().mean())

    def under(own: float, rates: Sequence[float], firmer: int = _FIRMER) -> list[Coded]:
        """Codes under a damping; where what columns hand on drowns coarser steps, under a firmer one."""
        order, factor = factored(stats, own)
        return coded(
            weight, rates, dtype, factor=factor, order=order, moment=stats.moment, raised=raised, events=stats.events,
            paths=paths and not stats.ahead, otherwise=(lambda rate: under(own * _BY, [rate], firmer - 1)[0]) if firmer and own else None,
        )  # fmt: skip

    for own, mine in _by_damping(steps, stats, damping, mean, paths).items():
        found |= zip(mine, under(own, [settled(step.rate, stats, paths) for step in mine]))
    return [found[step] for step in steps]


def settled(rate: float, stats: Stats, paths: bool) -> float:
    """The rate at which a weight is coded: where ``paths`` would be written but options are compared, that of the same error without."""
    return rate + _EVEN if paths and stats.ahead and rate <= PATHS else rate


def _by_damping(steps: Sequence[R], stats: Stats, damping: float, mean: float, paths: bool) -> dict[float, list[R]]:
    """Steps by the damping that each is solved with: no less than was asked for, and near the error left in an input of no energy.

    What is lost anyway must not be made up for by columns after it. Of a weight of variance v that is left with an error of θ in each direction
    that is the water level θ / v (see ``numerics/waterfill.py``), at which ``½ log2(1 + v λ / θ)`` over the eigenvalues λ are the bits of the rate
    but for those that codes lose: the geometric mean of the conditional variances of the inputs damped by it times ``2^(-2 bits)``.
    """
    found: dict[float, list[R]] = {}
    for step in steps:
        doublings = 0
        for _ in range(_TURNS if damping else 0):
            own = damping * 2**doublings
            share = float(factored(stats, own)[1].curvature.double().log().mean().exp()) / max(mean, 1e-300)
            level = share * 2 ** (2 * (_LOST + _EVEN * (not paths) - step.rate))
            more = round(math.log2(level / damping)) if level > damping else 0
            if more <= doublings:
                break
            doublings = min(more, _DOUBLINGS)
        found.setdefault(damping * 2**doublings, []).append(step)
    return found
