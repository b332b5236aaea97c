"""Layers between layers: where they may stand, and how wide what they are given is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from modicum.core.aside import Aside, Call, Spot
from modicum.core.errors import ModelError
from modicum.core.parametrization import State
from modicum.models.structure import find_blocks, find_units
from modicum.models.weights import Weights


@dataclass(frozen=True, kw_only=True)
class Added(Aside):
    """Stands behind parts of each block (attention, feed-forward) that give as wide a stream as it takes; files say what ``adds`` to it."""

    @override
    def places(self, root: nn.Module) -> list[str]:
        found = list(widths(root))
        if not found:
            raise ModelError(f"{type(root).__name__}: must have blocks of layers for {self} to stand between, has none.")
        return found

    def adds(self, state: State, stream: torch.Tensor, call: Call) -> torch.Tensor:
        """What is added to a part's output (..., width), float32."""
        raise NotImplementedError

    @override
    def around(self, state: State, call: Call) -> Any:
        found = call.plain()
        stream = found[0] if isinstance(found, tuple) else found
        stream = stream + self.adds(state, stream.float(), call).to(stream.dtype)
        return (stream, *found[1:]) if isinstance(found, tuple) else stream


def widths(root: nn.Module) -> dict[str, int]:
    """Parts of blocks by name, in order, with the width of their outputs; a block without such parts is one itself."""
    weights = Weights(root)
    units, found = find_units(root, weights), dict[str, int]()
    for block in find_blocks(root, weights):
        mine = [unit for unit in units.values() if unit.module.startswith(f"{block}.")]
        inside = {unit.module: unit.shape for unit in [unit for unit in mine if unit.kind in ("linear", "conv1d")] or mine}
        if not inside:
            continue
        stream = next(iter(inside.values()))[1]
        parts = dict.fromkeys(f"{block}.{name.removeprefix(f'{block}.').split('.')[0]}" for name in inside)
        wide = {part: [shape for name, shape in inside.items() if f"{name}.".startswith(f"{part}.")] for part in parts}
        matching = [part for part, shapes in wide.items() if len(shapes) > 1 and shapes[-1][0] == stream]
        found |= dict.fromkeys(matching or [block], stream)
    return found


def width(spot: Spot) -> int:
    """Width of the stream at a place."""
    return widths(spot.root)[spot.name]
