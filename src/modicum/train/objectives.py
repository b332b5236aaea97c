"""What is minimized: functions of a module and a batch that give a sum over tokens, and how many there are."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from modicum.core.errors import DataError
from modicum.data.answers import IGNORED
from modicum.data.splits import Batch, call

Objective = Callable[[nn.Module, Batch], tuple[torch.Tensor, int]]
"""Gives the loss (rows,) of each row of a batch, summed over its tokens, and the number of tokens over all rows."""


def targets(batch: Batch) -> torch.Tensor:
    """What each place of a batch of token ids is followed by, (rows, tokens - 1); -100 where nothing is learnt. Raises ``DataError``."""
    if not isinstance(batch, dict) or "input_ids" not in batch:
        raise DataError("data: a batch for the next token must have input_ids. Pass an objective of your own for others.")
    if "labels" in batch:
        return batch["labels"][:, 1:]
    ids = batch["input_ids"][:, 1:]
    return ids if "attention_mask" not in batch else ids.masked_fill(batch["attention_mask"][:, 1:] == 0, IGNORED)


def next_token(module: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
    """Cross-entropy of each next token, in nats: over the labels where there are any, else over every token."""
    wanted = targets(batch)
    logits = call(module, {name: value for name, value in batch.items() if name != "labels"}).logits  # type: ignore[union-attr]
    flat = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none")
    return flat.view(wanted.shape).sum(1), int((wanted != IGNORED).sum())


def distillation(teacher: nn.Module, temperature: float = 1.0) -> Objective:
    """Kullback-Leibler divergence from a teacher's next tokens to the module's, in nats, over the same tokens."""

    def objective(module: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        wanted = targets(batch)
        given: Batch = {name: value for name, value in batch.items() if name != "labels"}  # type: ignore[union-attr]
        with torch.no_grad():
            known = F.log_softmax(call(teacher, given).logits[:, :-1].float() / temperature, -1)
        said = F.log_softmax(call(module, given).logits[:, :-1].float() / temperature, -1)
        each = F.kl_div(said, known, reduction="none", log_target=True).sum(-1) * temperature**2
        return each.masked_fill(wanted == IGNORED, 0).sum(1), int((wanted != IGNORED).sum())

    return objective
