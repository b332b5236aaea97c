"""Weights chosen on validation data: the curve of one weight, the greedy soup, and mutations of the best so far."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from modicum.core.errors import SettingError
from modicum.merging.sources import Source

_AROUND = 64 << 20  # bytes of libraries that are loaded on the way, of texts, and of one sequence's activations

Score = Callable[[Sequence[float]], float]
"""Of some weights how good the merge is on validation data, higher is better."""


@dataclass(frozen=True)
class Found:
    """The best weights, their score, and all that was tried."""

    weights: tuple[float, ...]
    score: float
    tried: tuple[dict[str, Any], ...]


class _Tries:
    def __init__(self, score: Score):
        self.score, self.known = score, dict[tuple[float, ...], float]()

    def __call__(self, weights: Sequence[float]) -> float:
        key = tuple(float(weight) for weight in weights)
        if key not in self.known:
            self.known[key] = self.score(key)
        return self.known[key]

    def found(self, weights: Sequence[float] | None = None) -> Found:
        chosen = tuple(weights) if weights is not None else max(self.known, key=self.known.__getitem__)
        return Found(chosen, self(chosen), tuple({"weights": list(key), "score": value} for key, value in self.known.items()))


def curve(score: Score, count: int, points: int = 11) -> Found:
    """The best of one weight that all models share, at ``points`` places from 0 to 1: WiSE-FT's curve."""
    tries = _Tries(score)
    for place in range(points):
        tries([place / max(1, points - 1)] * count)
    return tries.found()


def greedy(score: Score, count: int) -> Found:
    """The greedy soup: models from the best to the worst, each taken in where the mean with it is at least as good."""
    tries = _Tries(score)
    alone = lambda place: [float(other == place) for other in range(count)]
    order = sorted(range(count), key=lambda place: -tries(alone(place)))
    taken = alone(order[0])
    for place in order[1:]:
        more = [max(one, other) for one, other in zip(taken, alone(place))]
        if tries(more) >= tries(taken):
            taken = more
    return tries.found(taken)


def evolved(score: Score, start: Sequence[float], *, trials: int = 40, seed: int = 0, spread: float = 0.3) -> Found:
    """The best of ``trials`` weights, each the best so far moved by chance; the steps shrink where nothing better is found.

    Weights stay at or above 0. As in a (1 + 1) evolution strategy, one step in five should be better: the spread grows and falls by that.
    """
    chance, tries = random.Random(seed), _Tries(score)
    best, wide = tuple(float(weight) for weight in start), spread
    tries(best)
    for _ in range(max(0, trials - 1)):
        moved = tuple(round(max(0.0, weight + chance.gauss(0, wide)), 6) for weight in best)
        if sum(moved) > 0 and tries(moved) > tries(best):
            best, wide = moved, wide * 1.5
        else:
            wide = max(wide * 0.9, 1e-3)
    return tries.found(best)


def require_whole(base: Source, models: int, free: int, held: int) -> None:
    """Raise ``SettingError`` where memory does not hold a merge, alone or with the module it is tried in, and what its largest tensor takes."""
    sizes = [math.prod(shape) * dtype.itemsize for dtype, shape in map(base.entry, base.names())]
    need = models * sum(sizes) + 4 * max(sizes, default=0) + _AROUND
    if need > free:
        raise SettingError(
            f"--ram: choosing weights holds a merge{' and the module that it is tried in' * (models > 1)}, {need / 1e6:.0f} MB, and "
            f"{free / 1e6:.0f} MB are free. "
            f"Give {math.ceil((held + need) / 1e6)} MB or more, or say the weights."
        )


WAYS = ("curve", "greedy", "evolution")


def search(way: str, score: Score, start: Sequence[float], trials: int = 24, seed: int = 0) -> Found:
    """The best weights by one of the ``WAYS``."""
    if way == "curve":
        return curve(score, len(start))
    return greedy(score, len(start)) if way == "greedy" else evolved(score, start, trials=trials, seed=seed)
