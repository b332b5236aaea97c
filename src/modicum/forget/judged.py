"""What forgetting is worth: losses, an attack that guesses who was seen, the distance to a model that never saw the rows, and what comes back."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.data.answers import IGNORED
from modicum.data.splits import Batch
from modicum.fit import fit
from modicum.forget.forgetter import Rows, updated
from modicum.models.quiet import hushed
from modicum.models.structure import find_blocks
from modicum.models.trainable import matrix, trainable
from modicum.models.weights import Weights
from modicum.numerics.interval import interval
from modicum.train.rows import Loss, answered, losses, stacked, together

# Updates on rows to retain after which it is asked again what is known of those to forget.
RELAPSE = 50
# Different rows to retain that a fit takes at least, one for each part of its data.
FEWEST = 3


def quality(module: nn.Module, rows: Sequence[Batch], loss: Loss) -> dict[str, Any]:
    """Mean loss of rows with a 95 % interval, and the share of labelled places whose label is the likeliest."""
    if not rows:
        return {"loss": None, "interval": None, "accuracy": None, "rows": 0}
    mean, low, high = interval(losses(module, rows, loss).tolist())
    return {"loss": mean, "interval": [low, high], "accuracy": _accuracy(module, rows), "rows": len(rows)}


@torch.no_grad()
def _accuracy(module: nn.Module, rows: Sequence[Batch]) -> float:
    right = total = 0
    for batch in together(rows):
        logits, labels = answered(module, batch)
        counted = labels != IGNORED
        right += int(((logits.argmax(-1) == labels) & counted).sum())
        total += int(counted.sum())
    return right / max(1, total)


def attacked(module: nn.Module, seen: Sequence[Batch], unseen: Sequence[Batch], loss: Loss) -> float:
    """How well a row's loss tells rows that were seen from rows that never were: the area under the curve, one half where it cannot."""
    one, other = losses(module, seen, loss), losses(module, unseen, loss)
    lower = (one[:, None] < other[None]).float() + 0.5 * (one[:, None] == other[None]).float()
    return float(lower.mean())


@torch.no_grad()
def distance(module: nn.Module, other: nn.Module, rows: Sequence[Batch]) -> float:
    """Mean Kullback-Leibler divergence, in nats, from another model's outputs at labelled places to the module's."""
    total = count = 0.0
    for batch in together(rows):
        (mine, labels), (theirs, _) = answered(module, batch), answered(other, batch)
        counted = labels != IGNORED
        log, reference = mine.log_softmax(-1), theirs.log_softmax(-1)
        total += float((reference.exp() * (reference - log)).sum(-1)[counted].sum())
        count += int(counted.sum())
    return total / max(1.0, count)


def known(module: nn.Module, rows: Rows, unseen: Sequence[Batch]) -> dict[str, dict[str, Any]]:
    """What is known of rows to forget, to retain, and of unseen ones."""
    sets = {"forget": rows.forget, "retain": rows.retain, "unseen": unseen}
    return {name: quality(module, some, rows.loss) for name, some in sets.items()}


def held_against(module: nn.Module, reference: nn.Module | None, rows: Rows, unseen: Sequence[Batch]) -> dict[str, Any]:
    """The attack where there are unseen rows; with a model that never saw the rows to forget the same of it, its quality, and the distance."""
    found: dict[str, Any] = {}
    if rows.forget and unseen:
        models = {"after": module} if reference is None else {"after": module, "reference": reference}
        found["attack"] = {name: attacked(one, rows.forget, unseen, rows.loss) for name, one in models.items()}
    if rows.forget and reference is not None:
        sets = {"forget": rows.forget, "retain": rows.retain}
        found["distance"] = {name: distance(module, reference, some) for name, some in sets.items()}
        found["reference"] = {name: quality(reference, some, rows.loss) for name, some in sets.items()}
    return found


def norms(module: nn.Module, before: Mapping[str, torch.Tensor]) -> dict[str, list[float]]:
    """By weight that changed the norm of its change, and that relative to the weight's."""
    units, found = trainable(module), dict[str, list[float]]()
    for name, old in before.items():
        change = float((matrix(module, units[name]).double() - old.double()).norm())
        if change:
            found[name] = [change, change / max(float(old.double().norm()), 1e-300)]
    return found


def by_layer(module: nn.Module, before: Mapping[str, torch.Tensor], rows: Rows) -> dict[str, dict[str, float]]:
    """Losses on both sets with what changed in one block alone, or outside of all blocks; the module is afterwards what it was."""
    units = trainable(module)
    after = {name: matrix(module, units[name]).clone() for name in norms(module, before)}
    inside = {name: block.name for block in find_blocks(module, Weights(module)).values() for name in block.parameters}
    groups = dict.fromkeys(inside.get(units[name].parameter, units[name].module) for name in after)
    found = {}
    for group in groups:
        for name, value in after.items():
            mine = inside.get(units[name].parameter, units[name].module) == group
            matrix(module, units[name]).copy_(value if mine else before[name])
        lost = lambda some: float(losses(module, some, rows.loss).mean())
        found[group or "the model"] = {"forget": lost(rows.forget), "retain": lost(rows.retain)}
    for name, value in after.items():
        matrix(module, units[name]).copy_(value)
    return found


def comes_back(module: nn.Module, rows: Rows, *, rate: float = 1e-4) -> dict[str, Any]:
    """What is known of the rows to forget after a fit to 4 bits, and after 50 updates on rows to retain."""
    told = lambda changed: {"forget": quality(changed, rows.forget, rows.loss), "retain": quality(changed, rows.retain, rows.loss)}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, hushed():
        made = fit(
            copy.deepcopy(module), method="nearest bits=4 group=32", target="modicum", data=[_inputs(row) for row in rows.retain[:32]],
            out=Path(folder) / "fit", allow_fallback=True, allow_broken=True,
        )  # fmt: skip
        found["4 bits"] = told(made.model.eval())
    trained = copy.deepcopy(module)
    updated(
        trained, len(rows.retain), lambda places, step: rows.loss(trained, stacked([rows.retain[place] for place in places])).mean(),
        steps=RELAPSE, rate=rate, batch=32, seed=rows.seed,
    )  # fmt: skip
    found[f"{RELAPSE} updates"] = told(trained)
    return found


def _inputs(row: Batch) -> Batch:
    return {"input_ids": row["input_ids"]} if isinstance(row, dict) else row[:-1]
