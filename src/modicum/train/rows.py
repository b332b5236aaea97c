"""Rows of data, batches of one row each that have one shape: put together, drawn, and the loss of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from modicum.data.answers import IGNORED
from modicum.data.splits import Batch

Loss = Callable[[nn.Module, Batch], torch.Tensor]
"""The loss (rows,) of each row of a batch."""


def stacked(rows: Sequence[Batch]) -> Batch:
    """Rows as one batch."""
    first = rows[0]
    if isinstance(first, dict):
        return {name: torch.cat([dict(row)[name] for row in rows]) for name in first}  # type: ignore[arg-type]
    return tuple(torch.cat([row[place] for row in rows]) for place in range(len(first)))  # type: ignore[index]


def together(rows: Sequence[Batch], batch: int = 64) -> Iterator[Batch]:
    """Rows as batches, in their order."""
    for start in range(0, len(rows), batch):
        yield stacked(rows[start : start + batch])


def drawn(count: int, batch: int, seed: int) -> Iterator[list[int]]:
    """Places of rows without end, each pass over all in an order of its own."""
    chance = torch.Generator().manual_seed(seed)
    while True:
        for places in torch.randperm(count, generator=chance).split(batch):
            yield places.tolist()


def answered(module: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (rows, places, classes), and the labels (rows, places) that they are held against, -100 where nothing is asked."""
    if isinstance(batch, dict):
        found = module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        return found[:, :-1].float(), batch["labels"][:, 1:]
    found = module(*batch[:-1])
    return getattr(found, "logits", found).float()[:, None], batch[-1][:, None]


def row_loss(module: nn.Module, batch: Batch) -> torch.Tensor:
    """Mean cross entropy (rows,): of a batch with ``input_ids`` that of the next tokens with labels, else of classes, the batch's last part."""
    logits, labels = answered(module, batch)
    each = nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="none").reshape(
        labels.shape
    )
    return each.flatten(1).sum(1) / (labels != IGNORED).flatten(1).sum(1).clamp(min=1)


def losses(module: nn.Module, rows: Sequence[Batch], loss: Loss = row_loss) -> torch.Tensor:
    """The loss of every row."""
    with torch.no_grad():
        return torch.cat([loss(module, batch) for batch in together(rows)]) if rows else torch.zeros(0)
