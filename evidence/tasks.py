"""What the rows on merging digits share: specialists of six corruptions, a merge of them, and accuracies over tasks."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

import modicum
from scenes.digits import CORRUPTIONS, accuracy, classifier
from scenes.tuned import net, of, state, tuned

TASKS = tuple(CORRUPTIONS)
Tensors = Mapping[str, torch.Tensor]


def base(seed: int) -> Tensors:
    """The net that all are fine-tuned from."""
    return state(classifier(net="vit", seed=seed))


def specialists(seed: int, tasks: Iterable[str] = TASKS, **settings: Any) -> list[Tensors]:
    """One for each task."""
    return [state(tuned(task=task, seed=seed, **settings)) for task in tasks]


def merged(text: str, of: Tensors, models: Sequence[Tensors], weights: Sequence[float] | None = None, seed: int = 0) -> Tensors:
    """What a merge makes of them."""
    found = modicum.merge(of, models, method=text, weights=weights, seed=seed).tensors
    assert found is not None
    return found


def over(tensors: Tensors, tasks: Iterable[str] = TASKS, part: str = "test") -> list[float]:
    """Accuracy on each task."""
    model = net(tensors)
    return [accuracy(model, *of(task, part, 1)) for task in tasks]


def best(text: str, scales: Sequence[float], of: Tensors, models: Sequence[Tensors], tasks: Iterable[str] = TASKS) -> tuple[float, Tensors]:
    """The scale at which a merge is best on validation pictures, and what it makes there; the text has its place."""
    tries = {scale: merged(text.format(scale=scale), of, models) for scale in scales}
    chosen = max(scales, key=lambda scale: statistics.mean(over(tries[scale], tasks, "validation")))
    return chosen, tries[chosen]
