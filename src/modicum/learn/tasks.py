"""A task: rows to learn it from and rows to report it on, and what of a model's answer belongs to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from modicum.core.errors import DataError, quoted
from modicum.data.splits import Batch
from modicum.train.rows import row_loss, stacked, together


@dataclass(frozen=True)
class Task:
    """Rows are batches of one row each that have one shape: inputs and a class (tuples), or ``input_ids``, ``attention_mask`` and ``labels``.

    Of classes only those count that stand in ``train``: whoever asks names the task. Raises ``DataError`` for a task without rows.
    """

    name: str
    train: Sequence[Batch]
    test: Sequence[Batch]

    def __post_init__(self) -> None:
        if not (self.train and self.test):
            raise DataError(f"learn: task {quoted(self.name)} must have rows to learn from and rows to report on. Give both.")

    @cached_property
    def classes(self) -> torch.Tensor | None:
        """Classes in order, int64; None for a language model's task."""
        if isinstance(self.train[0], dict):
            return None
        return torch.unique(torch.cat([row[-1].reshape(-1) for row in self.train]))  # type: ignore[index]

    def logits(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """Of a batch of a classifier's task (rows, classes of the task)."""
        found = module(*batch[:-1])  # type: ignore[index]
        logits: torch.Tensor = getattr(found, "logits", found).float()
        return logits if self.classes is None else logits[:, self.classes]

    def loss(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """Cross entropy (rows,)."""
        if self.classes is None:
            return row_loss(module, batch)
        places = torch.searchsorted(self.classes, batch[-1].reshape(-1))  # type: ignore[index]
        return nn.functional.cross_entropy(self.logits(module, batch), places, reduction="none")

    def answers(self, module: nn.Module) -> torch.Tensor:
        """Logits of all rows to report on, (rows, classes), of a language model those of every place."""
        with torch.no_grad():
            if self.classes is not None:
                return torch.cat([self.logits(module, batch) for batch in together(self.test)])
            return torch.cat([module(input_ids=batch["input_ids"], use_cache=False).logits.float() for batch in together(self.test, 8)])  # type: ignore[call-overload]

    def right(self, module: nn.Module) -> list[float]:
        """Of each row to report on whether its class is told (1 or 0), of a language model its loss."""
        if self.classes is None:
            with torch.no_grad():
                return torch.cat([self.loss(module, batch) for batch in together(self.test, 8)]).tolist()
        best = self.classes[self.answers(module).argmax(1)]
        return (best == stacked(self.test)[-1].reshape(-1)).float().tolist()  # type: ignore[index]
