"""What methods share whose weights are taken from numbers that several have in common: roles over depth, and one pool for all."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import torch

from modicum.core.parametrization import State
from modicum.forms import Shared
from modicum.forms.pooled import Pooled, entries


def role(unit: str) -> tuple[str, int]:
    """What a unit is in its block, and which block that is: its name without its first number, and that number, 0 where it has none."""
    found = re.search(r"(?:^|(?<=[.\[]))\d+", unit)
    return (unit, 0) if found is None else (f"{unit[: found.start()]}*{unit[found.end() :]}", int(found.group()))


def deviation(columns: int) -> float:
    """Of the numbers that a layer of so many columns begins with."""
    return 1 / math.sqrt(3 * max(1, columns))


def common_deviation(shapes: Iterable[tuple[int, int]]) -> float:
    """Of those that all weights begin with, taken together."""
    known = list(shapes)
    squares = math.fsum(math.prod(shape) * deviation(shape[1]) ** 2 for shape in known)
    return math.sqrt(squares / max(1, sum(map(math.prod, known))))


def place(at: int, first: int, length: int, chunk: int = 1, seed: int | None = None) -> torch.Tensor:
    """Where a weight's numbers lie in a pool, as a state keeps it."""
    return torch.tensor([at, first, length, chunk, -1 if seed is None else seed])


def weight(pool: torch.Tensor, where: torch.Tensor, shape: tuple[int, int], scale: torch.Tensor) -> torch.Tensor:
    """A weight (rows, columns) of a pool (1, numbers)."""
    return entries(pool.reshape(-1), math.prod(shape), scale, **_said(where)).reshape(shape)


def pooled(state: State, name: str, where: torch.Tensor, shape: tuple[int, int], scale: torch.Tensor) -> Pooled:
    """The same as a form; ``name`` is the pool's among tensors that are shared."""
    pool = state["pool"].detach()
    leaf = Shared(name, (1, pool.numel()), torch.float32, pool)
    return Pooled(leaf, shape, scale.detach().reshape(1).clone(), **_said(where))


def _said(where: torch.Tensor) -> dict[str, Any]:
    at, first, length, chunk, seed = where.tolist()
    return {"at": at, "first": first, "length": length, "chunk": chunk, "seed": None if seed < 0 else seed}
