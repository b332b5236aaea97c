"""The mean of a few values, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_RESAMPLES = 2000


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Mean and the bootstrap 95 % interval of it over ``values``."""
    array = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(array), (_RESAMPLES, len(array)))
    low, high = np.quantile(array[draws].mean(1), [0.025, 0.975])
    return float(array.mean()), float(low), float(high)
