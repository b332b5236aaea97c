"""What a receipt says of quality, computed again outside of a run: by plain modules on plain batches, from the receipt's own words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modicum.data.splits import Batch, call, chance_of, from_batches
from modicum.sweep.modes import seeded


def judged_batches(batches: Sequence[Any], seed: int = 0) -> list[Batch]:
    """Those of a run's batches that its receipt is about."""
    return from_batches(batches, seed).test


def divergence(quality: dict[str, Any], original: Any, candidate: Any, batches: Sequence[Batch]) -> float:
    """The receipt's mean again: what is judged, and as what, its ``outputs`` say.

    Classes: KL(original ‖ candidate) of each position's softmax; independent labels: the sum of theirs; values: squared error by square. All by
    row, then in the mean. Logits that come first stand for all; of values each row's worst counts.
    """
    told = [_told(row) for row in quality["outputs"]]
    rows: list[list[float]] = [[] for _ in told]
    for batch in batches:
        mine, theirs = run(original, batch), run(candidate, batch)
        for place, (name, kind, axis) in enumerate(told):
            rows[place] += _by_row(_at(mine, name), _at(theirs, name), kind, axis, batch)
    alike = [each for each in rows if len(each) == len(rows[0])]
    found = rows[0] if told[0][1] != "values" else [max(each) for each in zip(*alike)]
    return sum(found) / len(found)


def run(module: Any, batch: Batch) -> Any:
    """A plain forward, whose chance is the batch's."""
    with torch.no_grad(), seeded(chance_of(batch)):
        return call(module, batch)


def _told(row: dict[str, Any]) -> tuple[str, str, int]:
    """Name, kind and axis of one judged output."""
    words = str(row["judged"]).removeprefix(f"{row['name']}: ")
    axis = re.search(r"axis (\d+)", words)
    return row["name"], words.split(" ")[0], int(axis[1]) if axis else -1


def _at(output: Any, name: str) -> Tensor:
    if name != "output":
        for key in name.split("."):
            output = output[int(key)] if key.isdigit() and isinstance(output, tuple | list) else _named(output, key)
    return torch.view_as_real(output).double() if output.is_complex() else output.double()


def _named(output: Any, key: str) -> Any:
    return output[key] if isinstance(output, dict) and key in output else getattr(output, key)


def _by_row(mine: Tensor, theirs: Tensor, kind: str, axis: int, batch: Batch) -> list[float]:
    if mine.shape != theirs.shape:
        return [float("inf")]
    first = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
    if mine.ndim < (1 if kind == "values" else 2) or len(mine) != len(first):
        mine, theirs = mine[None], theirs[None]
    if kind == "values":
        return _values(mine, theirs)
    mine, theirs = mine.movedim(axis, -1), theirs.movedim(axis, -1)
    return [float(_kl(one, other, kind).mean()) for one, other in zip(mine, theirs)]


def _values(mine: Tensor, theirs: Tensor) -> list[float]:
    """Squared error of each row by its square; of single numbers by the mean square of all."""
    errors = (mine - theirs).nan_to_num(0, 0, 0).flatten(1).square().sum(1)
    squares = mine.nan_to_num(0, 0, 0).flatten(1).square().sum(1)
    if mine[0].numel() == 1:
        squares = squares.mean().expand(len(mine))
    return (errors / squares.clamp_min(1e-30)).tolist()


def _kl(mine: Tensor, theirs: Tensor, kind: str) -> Tensor:
    if kind == "independent":
        one, other = (torch.stack([-value, value]) for value in (mine, theirs))
        p, q = (torch.nn.functional.logsigmoid(value) for value in (one, other))
        return (p.exp() * (p - q)).sum(0).sum(-1)
    p, q = mine.log_softmax(-1), theirs.log_softmax(-1)
    return torch.where(mine.isneginf(), 0, p.exp() * (p - q)).sum(-1)
