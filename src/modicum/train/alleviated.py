"""What keeps a fine-tuning from learning its data's faults: three terms beside the loss (BA-LoRA, arXiv 2408.04556)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from modicum.core.errors import SettingError
from modicum.data.answers import IGNORED
from modicum.data.splits import Batch, call
from modicum.train.objectives import Objective, diverging, targets


def alleviated(before: nn.Module, *, consistency: float = 0.1, diversity: float = 0.1, spectrum: float = 0.1, top: int = 4) -> Objective:
    """Cross-entropy of classes (``labels`` (rows,)) or next tokens, and beside it what holds answers to those of the model ``before``.

    ``consistency`` times the divergence from its answers; ``diversity`` times how much different classes vary together, or for next tokens how
    sure answers are; ``spectrum`` times what the ``top`` singular values of a batch's logits lack of all. BA-LoRA is this objective with ``pissa``.

    *Reduces to*: ``classes`` or ``next_token`` with all three at 0. *Raises*: ``SettingError`` for a weight below 0 or a ``top`` below 1.
    """
    if min(consistency, diversity, spectrum) < 0 or top < 1:
        raise SettingError(
            f"alleviated: weights must be 0 or more and top 1 or more, are {consistency}, {diversity}, {spectrum} and {top}."
        )

    def objective(module: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        logits, wanted, rows = _answered(module, batch)
        each, beside = F.cross_entropy(logits, wanted, reduction="none"), logits.new_zeros(())
        if consistency:
            with torch.no_grad():
                known, _, _ = _answered(before, batch)
            beside = beside + consistency * diverging(logits, known).mean()
        if diversity:
            beside = beside + diversity * (_together(logits) if logits.shape[0] == len(rows.unique()) else _certainty(logits))
        if spectrum:
            values = torch.linalg.svdvals(logits)
            beside = beside + spectrum * (1 - values[:top].sum() / values.sum())
        return each.new_zeros(int(rows.max()) + 1).index_add(0, rows, each + beside), len(each)

    return objective


def _answered(module: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (places, classes) where something is wanted, what is, and the row of each."""
    if isinstance(batch, dict) and not ("labels" in batch and batch["labels"].ndim == 1):
        wanted = targets(batch)
        met = wanted != IGNORED
        found = call(module, {name: value for name, value in batch.items() if name != "labels"}).logits[:, :-1]
        return found[met].float(), wanted[met], met.nonzero()[:, 0]
    inputs = {name: value for name, value in batch.items() if name != "labels"} if isinstance(batch, dict) else batch[:-1]
    labels = batch["labels"] if isinstance(batch, dict) else batch[-1]
    said = call(module, inputs)
    return getattr(said, "logits", said).float(), labels, torch.arange(len(labels))


def _together(logits: torch.Tensor) -> torch.Tensor:
    """Squared covariances of different classes over a batch, per class."""
    centred = logits - logits.mean(0)
    covariance = centred.T @ centred / max(1, len(logits) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / logits.shape[1]


def _certainty(logits: torch.Tensor) -> torch.Tensor:
    """Mean of minus the entropy of each answer."""
    logs = logits.log_softmax(-1)
    return (logs.exp() * logs).sum(-1).mean()
