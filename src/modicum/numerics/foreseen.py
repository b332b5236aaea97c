"""Where a scale should be for a stream to have its size: on curves and lines between sizes that were met."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

# Times that the curve's step is taken at the most.
_FARTHEST = 8
# The share of a stream that may stay free.
FREE = 0.004


class Met(Protocol):
    """A scale, and the bytes of the codes that it gave."""

    @property
    def scale(self) -> float:
        """What steps are multiplied by."""

    @property
    def size(self) -> int:
        """Bytes."""


def aim(room: float) -> float:
    """Bytes that codes should take, in the middle of what may stay free."""
    return room * (1 - FREE / 2)


def inverse(curve: tuple[np.ndarray, np.ndarray], bits: float) -> float:
    """The scale at which plain rounding takes so many bits, on a ``curve`` of octaves and bits that fall with them."""
    octaves, sizes = curve
    return float(2 ** np.interp(-bits, -sizes, octaves))


def between(scales: Sequence[float], sizes: Sequence[int], wanted: float) -> float:
    """The scale that has so many bytes, on the lines between these sizes."""
    order = np.argsort(sizes)
    return float(2 ** np.interp(wanted, np.array(sizes)[order], np.log2(scales)[order]))


def nearer(curve: tuple[np.ndarray, np.ndarray], met: Sequence[Met], wanted: float) -> float:
    """The scale whose codes should have so many bytes: on the line between a trial of fewer bytes and one of more.

    While there is none on one side, by the slope of the curve, each time twice as far as the time before, up to eight times: where feedback takes
    bits of its own, sizes fall much more slowly than on the curve.
    """
    octave = lambda trial: math.log2(trial.scale)
    over = min((trial for trial in met if trial.size > wanted), key=lambda trial: trial.size, default=None)
    under = max((trial for trial in met if trial.size <= wanted), key=lambda trial: trial.size, default=None)
    if over is not None and under is not None:
        return float(2 ** np.interp(wanted, [under.size, over.size], [octave(under), octave(over)]))
    nearest = over or under
    assert nearest is not None
    far = math.log2(inverse(curve, float(np.interp(octave(nearest), *curve)) * wanted / nearest.size)) - octave(nearest)
    return float(2 ** (octave(nearest) + far * min(2 ** (len(met) - 1), _FARTHEST)))
