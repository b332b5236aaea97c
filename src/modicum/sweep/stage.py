"""What a sweep hands over: stages, what is told of them, and what several units have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from modicum.core.blocks import Blocks
from modicum.core.unit import Stats, Unit


@dataclass
class Stage:
    """Units that share an input, in call order, with what was measured of it."""

    units: tuple[Unit, ...]
    block: str
    stats: dict[str, Stats]


@dataclass
class Chronicle:
    """What a sweep has to report: events by kind."""

    events: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Keep ``text`` once."""
        if text not in self.events:
            self.events.append(text)


def placed_on(value: Any, device: torch.device) -> Any:
    """Every tensor of a block's output on ``device``."""
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), value)


def looked_up(unit: Unit, inputs: list[torch.Tensor]) -> Stats:
    """How often each entry was looked up; unknown where the module derives its indices itself."""
    if any(ids.is_floating_point() or ids.numel() == 0 or int(ids.max()) >= unit.shape[0] or int(ids.min()) < 0 for ids in inputs):
        return Stats()
    frequency = torch.stack([torch.bincount(ids.reshape(-1).long(), minlength=unit.shape[0]) for ids in inputs]).sum(0).float().cpu()
    return Stats(count=int(frequency.sum()), frequency=frequency)


def seed_of(seed: int, name: str) -> int:
    """Seed of one unit's source of chance: depends on the run's seed and the name, on no order and no hash seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little") >> 1


def pooled(found: list[Stats]) -> Stats:
    """What several units have seen together."""
    total: Callable[[Sequence[Any]], Any] = lambda values: (
        None if values[0] is None else reduce(torch.Tensor.add_, values[1:], values[0].clone())
    )
    inputs = None if found[0].inputs is None else [rows for stats in found for rows in stats.inputs or []]
    parts = zip(*(stats.blocks.parts for stats in found if stats.blocks is not None))
    blocks = None if found[0].blocks is None else Blocks(tuple(total(part) for part in parts))
    return Stats(
        count=sum(stats.count for stats in found), total=total([s.total for s in found]), square=total([s.square for s in found]),
        covariance=total([s.covariance for s in found]), blocks=blocks, inputs=inputs,
    )  # fmt: skip
