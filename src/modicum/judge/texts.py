"""The same beginnings of held-out text, gone on with by a model and by its original: for people to read."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from modicum.judge.generation import continued
from modicum.models.model import Model

# Beginnings, and the tokens that each is gone on with.
_PROMPTS, _LONG = 2, 40
# Weights beyond which writing on takes minutes.
MOST_BYTES = 8_000_000_000


def side_by_side(model: Model, prompts: torch.Tensor, module: nn.Module, tokenizer: Any) -> list[dict[str, str]]:
    """For each of some ``prompts`` (rows, tokens) its text, and the first choices after it of the ``original`` and of the ``compressed`` ``module``.

    Raises ``ModelError`` where a model's own generation fails.
    """
    few = prompts[:_PROMPTS]
    twin = model.stored.twin()
    twin.weights.load(twin.weights.names)
    try:
        made = {"original": continued(twin.module, few, long=_LONG), "compressed": continued(module, few, long=_LONG)}
    finally:
        twin.weights.release(twin.weights.names)
    read = lambda ids: str(tokenizer.decode(ids.tolist(), skip_special_tokens=True))
    rows = zip(few, *(texts[:, few.shape[1] :] for texts in made.values()))
    return [dict(zip(("prompt", *made), map(read, row))) for row in rows]
