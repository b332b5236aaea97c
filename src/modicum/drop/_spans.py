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


def hidden(output: Any) -> torch.Tensor:
    """A block's hidden state."""
    return output[0] if isinstance(output, tuple) else output


def span_changes(model: Model, script: Script, batches: Sequence[Batch], count: int, pool: SpillPool) -> dict[tuple[str, ...], float]:
    """Mean cosine distance between the hidden states before and after every span of ``count`` droppable blocks that has a block before it."""
    found = {span: change for span, change in every_change(model, script, batches, count, pool).items() if len(span) == count}
    if not found:
        raise ModelError(f"{model.name}: must have a span of {count} blocks that can be dropped after another block, has none. Drop fewer.")
    return found


def every_change(model: Model, script: Script, batches: Sequence[Batch], most: int, pool: SpillPool) -> dict[tuple[str, ...], float]:
    """The same for the spans of all lengths up to ``most``, from one sweep."""
    recent: deque[tuple[str, dict[int, torch.Tensor]]] = deque(maxlen=most + 1)
    found: dict[tuple[str, ...], float] = {}

    def on_block(name: str, outputs: dict[int, Any]) -> None:
        if recent and model.blocks[recent[-1][0]].list_name != model.blocks[name].list_name:
            recent.clear()
        recent.append((name, {index: hidden(output).detach() for index, output in outputs.items()}))
        states = list(recent)
        for place in range(len(states) - 1):
            span = tuple(other for other, _ in states[place + 1 :])
            if script.may_go(span):
                found[span] = _distance(states[place][1], states[-1][1])

    Sweep(model, batches, script, pool=pool, on_block=on_block).finish()
    return found


def _distance(before: dict[int, torch.Tensor], after: dict[int, torch.Tensor]) -> float:
    if any(before[i].shape != after[i].shape for i in after):
        return 2.0
    similar = [torch.nn.functional.cosine_similarity(before[i].float(), after[i].float(), dim=-1).mean() for i in after if after[i].numel()]
    return 1.0 - float(torch.stack(similar).mean()) if similar else 2.0


def least(changes: dict[tuple[str, ...], float]) -> tuple[str, ...]:
    """The span whose removal turns the hidden state least."""
    return min(changes, key=lambda span: changes[span])
