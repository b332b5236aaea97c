"""What the rows on small models share: nets trained from the start on digits, under a method, and what they are worth."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from classifying import learn
from kept import Kept
from modicum.forms.leaves import beside
from modicum.restrict._family import Restriction
from modicum.train.learning import plan_of
from modicum.train.scoring import scored
from modicum.train.trained import Trained
from scenes import digits
from scenes.training import classes, drawn

DATA = "scikit-learn's digits at 16 by 16, 1000 to learn and 497 to report"
SEEDS = (0, 1, 2)
_STEPS, _RATE, _BATCH = 500, 1e-2, 64


def conv(method: str, seed: int, width: int = 16, steps: int = _STEPS, rate: float = _RATE) -> dict[str, float]:
    """A convolutional net trained from random weights under a method, with what it gets right on the test part."""
    torch.manual_seed(seed)
    return fitted(digits.Conv(width), method, seed, steps, rate)


def vit(method: str, seed: int, steps: int = _STEPS, rate: float = 2e-3) -> dict[str, float]:
    """The same for a ViT, whose blocks the method is for."""
    torch.manual_seed(seed)
    return fitted(digits.vit(), method, seed, steps, rate)


def fitted(
    model: torch.nn.Module, method: str | Mapping[str, Any], seed: int, steps: int = _STEPS, rate: float = _RATE, scratch: bool = True,
    task: str | None = None, rows: int = 1000, part: str = "test",
) -> dict[str, float]:  # fmt: skip
    """The same for a net as it is; ``values`` and ``bytes`` are those of its matrices as they are stored.

    A plan says more than a method; ``task`` is the corruption that is learnt and judged on, where it is one, of so many ``rows``.
    """
    x, y = (each[:rows] for each in digits.pictures("train", task))
    batches = [(x[places], y[places]) for _, places in zip(range(steps), drawn(len(x), _BATCH, seed))]
    plan = plan_of(model, method) if isinstance(method, str) else method
    with Trained(model, plan, seed=seed, total=steps, scratch=scratch) as t:
        model.train()
        scored(t, lambda: classes(model, (x[:256], y[:256])))
        restricted = [name for name, place in t.places.items() if isinstance(place.method, Restriction) and place.unit.shape[0] > 1]
        curve = learn(t, batches, classes, rate, steps)
        model.eval()
        forms = t.forms()
        found = {"curve": curve, **worth(model, task, part)}
        once = beside(forms[name] for name in restricted).values()
        values = sum(forms[name].values for name in restricted) + sum(tensor.numel() for tensor in once)
        stored = {"values": values, "bytes": sum(forms[name].nbytes for name in restricted) + sum(tensor.nbytes for tensor in once)}
    return found | stored


def worth(model: torch.nn.Module, task: str | None = None, part: str = "test") -> dict[str, float]:
    """Loss and accuracy on a part of a task, and accuracy over all corruptions."""
    x, y = digits.pictures(part, task)
    corrupted = [digits.accuracy(model, *digits.pictures(part, name)) for name in digits.CORRUPTIONS]
    loss = float(F.cross_entropy(digits.logits(model, x), y))
    return {"loss": loss, "accuracy": digits.accuracy(model, x, y), "corrupted": sum(corrupted) / len(corrupted)}


def shared() -> Kept:
    """Trainings are steps that all rows on small models share."""
    return Kept.of("small")


def many(
    kept: Kept, method: str, seeds: Sequence[int] = SEEDS, once: Callable[..., dict[str, float]] = conv, **words: Any
) -> dict[str, Any]:
    """A row of the method on all seeds."""
    told = "".join(f", {name} {value}" for name, value in words.items()) + ("" if once is conv else f", {once.__name__}")
    found = [kept(f"{method}{told}, seed {seed}", functools.partial(once, method, seed, **words)) for seed in seeds]
    return row(f"{method}{told}", found)


def row(option: str, found: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Lists of numbers by name, one of each seed."""
    return {"option": option, **{name: [each[name] for each in found] for name in found[0]}}


def less(method: dict[str, Any], other: dict[str, Any], name: str = "loss") -> list[float]:
    """By how much the method's is less, by seed."""
    return [b - a for a, b in zip(method[name], other[name])]
