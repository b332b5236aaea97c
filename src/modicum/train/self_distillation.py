"""A model that teaches itself: targets refined by what it said before, and the closed form of that in kernel ridge regression."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from modicum.core.errors import SettingError


def refined(labels: torch.Tensor, past: torch.Tensor, share: float) -> torch.Tensor:
    """Soft targets (rows, classes): classes as they are, mixed with what the model said a pass ago.

    ``(1 - share) · onehot(labels) + share · past`` with labels (rows,) of whole numbers and past (rows, classes) that sum to one; the share grows
    evenly over training. Kim and others, Self-Knowledge Distillation with Progressive Refinement of Targets (2006.12000). Raises ``SettingError``
    for a share outside 0 and 1.
    """
    if not 0 <= share <= 1:
        raise SettingError(f"share: must be between 0 and 1, is {share}.")
    return torch.nn.functional.one_hot(labels, past.shape[1]).to(past.dtype).mul(1 - share) + share * past


def distilled(kernel: torch.Tensor, targets: torch.Tensor, ridge: float, weight: float, steps: int) -> torch.Tensor:
    """What kernel ridge regression fits after steps of self-distillation, in closed form.

    Each step fits ``weight · targets + (1 - weight) · last fit``. With eigenvalues d of the kernel (rows, rows) and ``s = d / (d + ridge)`` the first
    fit is multiplied by ``weight · (1 - q^steps) / (1 - q) + q^steps``, where ``q = (1 - weight) · s``; without end that is one regression with the
    ridge divided by the weight. Borup and Andersen, Even your Teacher Needs Guidance (2102.13088). Gives fits of the shape of ``targets``.
    """
    values, vectors = torch.linalg.eigh(kernel)
    share = values.clamp_min(0) / (values.clamp_min(0) + ridge)
    again = (1 - weight) * share
    factor = weight * (1 - again**steps) / (1 - again) + again**steps
    return vectors @ ((factor * share)[:, None] * (vectors.T @ targets.reshape(len(kernel), -1))).reshape(targets.shape)


def best_weight(from_targets: torch.Tensor, from_fit: torch.Tensor, wanted: torch.Tensor) -> float:
    """The weight of the targets in one step that is nearest to ``wanted`` on rows that were not fitted, in closed form.

    Predictions are linear in targets, so those of a mixture are the mixture of ``from_targets``, of a model fitted to the targets, and ``from_fit``,
    of one fitted to the last fit. For models that are linear in no such way, two trainings give an estimate where a grid takes one each.
    """
    apart = from_targets - from_fit
    return float((apart * (wanted - from_fit)).sum() / apart.square().sum().clamp_min(1e-30))


def share_of(step: int, steps: int, last: float = 0.8) -> float:
    """How much of the targets is the model's own after so many updates: evenly up to ``last``."""
    return last * min(1.0, step / max(1, steps))


def calibration_error(probabilities: torch.Tensor, labels: torch.Tensor, bins: int = 10) -> float:
    """Expected calibration error: how far confidence (rows, classes) and accuracy are apart, over bins of equal width."""
    confidence, chosen = probabilities.max(1)
    right = (chosen == labels).float()
    edges: Sequence[float] = torch.linspace(0, 1, bins + 1).tolist()
    inside = [(confidence > low) & (confidence <= high) for low, high in itertools.pairwise(edges)]
    return sum(float(each.float().mean() * (confidence[each].mean() - right[each].mean()).abs()) for each in inside if bool(each.any()))
