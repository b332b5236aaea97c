"""What codes come near in place of a weight: what makes up for losses before it, and for those of its other rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from modicum.core.method import Need
from modicum.core.unit import Stats
from modicum.forms import Integer
from modicum.numerics.coupled import coupled
from modicum.numerics.descent import descend
from modicum.numerics.drift import towards
from modicum.numerics.solver import Factor
from modicum.quantize._factor import factored

# Bits that are few: what is done for them is worth its time; what is written, not only compared, is settled by so many sweeps more.
FEW, _MORE = 3, 4


def made(
    method: Any, weights: Sequence[torch.Tensor], stats: Sequence[Stats], make: Callable[[list[torch.Tensor]], Sequence[Integer]]
) -> Sequence[Integer]:  # fmt: skip
    """What ``make`` gives for the targets of float32 weights (rows, columns), their rows in turns where it was seen how the output feels them
    together; as the settings of ``method`` say.
    """
    settled = lambda parts: _settled(method, parts, make(parts), stats[0])
    targets = [aimed(method, weight, seen, method.order) for weight, seen in zip(weights, stats)]
    felts = [seen.coupled if Need.FELT in method.wanted() else None for seen in stats]
    return settled(targets) if all(felt is None for felt in felts) else coupled(targets, felts, settled, method.turns)


def _settled(method: Any, weights: list[torch.Tensor], forms: Sequence[Integer], stats: Stats) -> Sequence[Integer]:
    """Forms of few bits moved further, but for those that are made to compare options."""
    if not method.sweeps or method.bits > FEW or stats.ahead:
        return forms
    assert stats.moment is not None
    damping = factored(stats, method.damping, method.order)[1].damping
    forms, losses = descend(weights, [method.grid] * len(forms), forms, stats.moment, damping, _MORE)
    stats.cache["loss"] = float(torch.cat(losses).sum())
    return forms


def aimed(method: Any, weight: torch.Tensor, stats: Stats, order: str = "static") -> torch.Tensor:
    """What makes up for a share of how the inputs of a weight drifted, where the ``method`` asks for it and that was seen."""
    if stats.drift is None or Need.DRIFT not in method.wanted():
        return weight
    columns, factor = factored(stats, method.damping, order)
    assert isinstance(factor, Factor)
    return towards(weight, stats.drift, columns, factor, method.towards)
