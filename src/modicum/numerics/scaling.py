"""A law of how loss falls with the numbers that are trained, fitted to a few trainings, with its error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from modicum.core.errors import DataError


@dataclass(frozen=True)
class Law:
    """``floor + scale · size^-power``: the loss of a training of a given length by the parameters that it has on average over its updates."""

    floor: float
    scale: float
    power: float

    def __call__(self, size: float) -> float:
        """The loss at a size."""
        return self.floor + self.scale * size**-self.power


def fitted(sizes: Sequence[float], losses: Sequence[float]) -> Law:
    """The law of least squares, its power between 0.01 and 3, floor and scale no less than zero. Raises ``DataError`` below three sizes."""
    if len(set(sizes)) < 3 or len(sizes) != len(losses) or not all(math.isfinite(each) and each > 0 for each in [*sizes, *losses]):
        raise DataError("scaling: must have trainings of three sizes at least, each with a size and a loss above 0.")
    found = [_at(power, sizes, losses) for power in torch.logspace(-2, math.log10(3), 400, dtype=torch.float64).tolist()]
    return min(found, key=lambda law: sum((law(size) - loss) ** 2 for size, loss in zip(sizes, losses)))


def _at(power: float, sizes: Sequence[float], losses: Sequence[float]) -> Law:
    small = torch.tensor(sizes, dtype=torch.float64) ** -power
    y = torch.tensor(losses, dtype=torch.float64)
    slope = float(((small - small.mean()) * (y - y.mean())).sum() / (small - small.mean()).square().sum().clamp_min(1e-300))
    floor = float(y.mean()) - slope * float(small.mean())
    if slope < 0:
        return Law(float(y.mean()), 0.0, power)
    return Law(floor, slope, power) if floor >= 0 else Law(0.0, float((small * y).sum() / small.square().sum()), power)


def left_out(sizes: Sequence[float], losses: Sequence[float]) -> float:
    """The law's error: the root of the mean square by which it misses each training that it was not fitted to."""
    missed = []
    for place in range(len(sizes)):
        others = [number for number in range(len(sizes)) if number != place]
        law = fitted([sizes[number] for number in others], [losses[number] for number in others])
        missed.append((law(sizes[place]) - losses[place]) ** 2)
    return math.sqrt(sum(missed) / len(missed))


def average(whole: float, share: float, since: float, until: float) -> float:
    """Parameters that a training has on average, of ``whole`` pruned along a cubic to ``share`` between two shares of the updates."""
    falling = (until - since) * (share + (1 - share) / 4)
    return whole * (since + falling + (1 - until) * share)
