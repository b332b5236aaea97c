"""What an option costs in quality: the error it makes in a unit's output, weighed by how much the model's output feels it."""

from __future__ import annotations

import torch

from modicum.core.unit import Stats, Unit
from modicum.sweep import Sensitivity


def output_error(error: torch.Tensor, stats: Stats, sensitivity: Sensitivity | None) -> torch.Tensor | None:
    """Mean squared output error per row (rows,) of weight error (rows, columns), or None where nothing is known of the inputs."""
    if stats.covariance is not None and stats.count:
        return (error @ stats.covariance).mul_(error).sum(1) / stats.count
    if stats.square is not None and stats.count:
        return (error.square() @ stats.square) / stats.count
    if sensitivity is not None and sensitivity.square is not None:
        return error.square() @ sensitivity.square
    return None


def harm(unit: Unit, error: torch.Tensor, stats: Stats, sensitivity: Sensitivity | None, weight: torch.Tensor) -> float | None:
    """Predicted KL per token in nats, or None where the unit's inputs or gradients were not seen.

    Half the sum over rows of the output's Fisher information times the mean squared output error; without ``sensitivity`` the output error
    relative to the output. For an embedding, entries count by how often they were looked up.
    """
    if unit.kind == "embedding" and not unit.aliases:
        return _embedding(error, stats, sensitivity, weight)
    rows = output_error(error, stats, sensitivity)
    if rows is None:
        return None
    if sensitivity is None:
        whole = output_error(weight, stats, None)
        return None if whole is None else float(rows.sum() / whole.sum().clamp_min(1e-30))
    return float(0.5 * (rows * sensitivity.gradient).sum())


def _embedding(error: torch.Tensor, stats: Stats, sensitivity: Sensitivity | None, weight: torch.Tensor) -> float | None:
    frequency = stats.frequency if stats.frequency is not None else torch.ones(len(error))
    share = frequency / frequency.sum().clamp_min(1)
    # Entries not met in calibration will be met later: every entry counts as if met once more.
    share = (share * frequency.sum() + 1.0) / (frequency.sum() + len(frequency))
    squares = share @ error.square()
    if sensitivity is None:
        return float(squares.sum() / (share @ weight.square()).sum().clamp_min(1e-30))
    if sensitivity.gradient.shape != squares.shape:
        return None
    return float(0.5 * (squares * sensitivity.gradient).sum())
