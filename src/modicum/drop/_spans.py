"""Spans of blocks: which to drop, and what the chain looks like around them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from modicum.core.errors import ModelError
from modicum.data.splits import Batch
from modicum.models.model import Model
from modicum.sweep import Script, Sweep
from modicum.sweep.spill import SpillPool


def first(output: Any) -> torch.Tensor:
    """A block's hidden state."""
    return output[0] if isinstance(output, tuple) else output


def span_changes(model: Model, script: Script, batches: Sequence[Batch], count: int, pool: SpillPool) -> dict[tuple[str, ...], float]:
    """Mean cosine distance between the hidden states before and after every span of ``count`` droppable blocks that has a block before it."""
    recent: deque[tuple[str, dict[int, torch.Tensor]]] = deque(maxlen=count + 1)
    found: dict[tuple[str, ...], float] = {}

    def on_block(name: str, outputs: dict[int, Any]) -> None:
        block = model.blocks[name]
        if recent and model.blocks[recent[-1][0]].list_name != block.list_name:
            recent.clear()
        recent.append((name, {index: first(output).detach() for index, output in outputs.items()}))
        span = tuple(other for other, _ in list(recent)[1:])
        if len(recent) == count + 1 and set(span) <= script.droppable:
            before, after = recent[0][1], recent[-1][1]
            similar = [torch.nn.functional.cosine_similarity(before[i].float(), after[i].float(), dim=-1).mean() for i in after]
            found[span] = 1.0 - float(torch.stack(similar).mean())

    Sweep(model, batches, script, pool=pool, on_block=on_block).finish()
    if not found:
        raise ModelError(f"{model.name}: must have a span of {count} blocks that can be dropped after another block, has none. Drop fewer.")
    return found


def least(changes: dict[tuple[str, ...], float]) -> tuple[str, ...]:
    """The span whose removal turns the hidden state least."""
    return min(changes, key=lambda span: changes[span])
