"""What is minimized: functions of a module and a batch that give a sum over tokens, and how many there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn

from modicum.core.errors import DataError
from modicum.data.answers import IGNORED
from modicum.data.splits import Batch, call

Objective = Callable[[nn.Module, Batch], tuple[torch.Tensor, int]]
"""Gives the loss (rows,) of each row of a batch, summed over its tokens, and the number of tokens over all rows."""

# Logits that are in memory at a time, in numbers.
_LOGITS = 1 << 22


def targets(batch: Batch) -> torch.Tensor:
    """What each place of a batch of token ids is followed by, (rows, tokens - 1); -100 where nothing is learnt. Raises ``DataError``."""
    if not isinstance(batch, dict) or "input_ids" not in batch:
        raise DataError("data: a batch for the next token must have input_ids. Pass an objective of your own for others.")
    if "labels" in batch:
        return batch["labels"][:, 1:]
    ids = batch["input_ids"][:, 1:]
    return ids if "attention_mask" not in batch else ids.masked_fill(batch["attention_mask"][:, 1:] == 0, IGNORED)


def next_token(module: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
    """Cross-entropy of each next token, in nats: over the labels where there are any, else over every token.

    Logits are made where a token counts, some at a time, and let go at once with their gradient taken, where the head alone gives the module's own
    logits: those of a first row must be the same to the bit. A module that does something to its logits, or whose head is trained, computes them all.
    """
    wanted = targets(batch)
    head = _lean_head(module, batch)
    if head is None:
        return _whole(module, batch, wanted), int((wanted != IGNORED).sum())
    with _unheaded(head):
        hidden = call(module, _given(batch)).logits[:, :-1]
    met = wanted != IGNORED
    losses = hidden.new_zeros(wanted.shape, dtype=torch.float32)
    losses = losses.masked_scatter(met, _HeadLoss.apply(hidden[met], wanted[met], head))
    return losses.sum(1), int(met.sum())


def distillation(teacher: nn.Module, temperature: float = 1.0) -> Objective:
    """Kullback-Leibler divergence from a teacher's next tokens to the module's, in nats, over the same tokens."""

    def objective(module: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        wanted = targets(batch)
        with torch.no_grad():
            known = F.log_softmax(call(teacher, _given(batch)).logits[:, :-1].float() / temperature, -1)
        said = F.log_softmax(call(module, _given(batch)).logits[:, :-1].float() / temperature, -1)
        each = F.kl_div(said, known, reduction="none", log_target=True).sum(-1) * temperature**2
        return each.masked_fill(wanted == IGNORED, 0).sum(1), int((wanted != IGNORED).sum())

    return objective


def _given(batch: Batch) -> Batch:
    assert isinstance(batch, dict)
    return {name: value for name, value in batch.items() if name != "labels"}


def _whole(module: nn.Module, batch: Batch, wanted: torch.Tensor) -> torch.Tensor:
    logits = call(module, _given(batch)).logits
    flat = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none")
    return flat.view(wanted.shape).sum(1)


_LEAN: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _lean_head(module: nn.Module, batch: Batch) -> nn.Module | None:
    """The module's head where the loss can be had of it alone, found out once for each module."""
    found: Any = getattr(module, "get_output_embeddings", lambda: None)()
    if not isinstance(found, nn.Linear) or any(_is_trained(found, name) for name in found._parameters):
        return None
    if module not in _LEAN:
        assert isinstance(batch, dict)
        row: Batch = {name: value[:1] for name, value in batch.items()}
        with torch.no_grad():
            logits = call(module, _given(row)).logits
            with _unheaded(found):
                hidden = call(module, _given(row)).logits
            _LEAN[module] = hidden.shape[-1] == found.in_features and torch.equal(found(hidden), logits)
    return found if _LEAN[module] else None


def _is_trained(head: nn.Module, name: str) -> bool:
    value = getattr(head, name)
    return value is not None and value.requires_grad


@contextmanager
def _unheaded(head: nn.Module) -> Iterator[None]:
    """Inside, the head gives what it is given."""
    had = head.__dict__.get("forward")
    head.__dict__["forward"] = lambda hidden: hidden
    try:
        yield
    finally:
        if had is None:
            del head.__dict__["forward"]
        else:
            head.__dict__["forward"] = had


class _HeadLoss(torch.autograd.Function):
    """Losses (tokens,) of hidden states (tokens, width) under a head that is not trained; the gradient is taken while the logits are there."""

    @staticmethod
    def forward(ctx, hidden: torch.Tensor, wanted: torch.Tensor, head: nn.Module) -> torch.Tensor:
        wants, step = ctx.needs_input_grad[0], max(1, _LOGITS // head.out_features)  # type: ignore[operator]
        losses, slopes = [], []
        for some, goals in zip(hidden.split(step), wanted.split(step)):
            with torch.set_grad_enabled(wants):
                leaf = some.detach().requires_grad_(wants)
                each = F.cross_entropy(head(leaf).float(), goals, reduction="none")
                if wants:
                    slopes.append(torch.autograd.grad(each.sum(), leaf)[0])
            losses.append(each.detach())
        ctx.save_for_backward(*([torch.cat(slopes)] if slopes else []))
        return torch.cat(losses) if losses else hidden.new_zeros(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        (slopes,) = ctx.saved_tensors
        return slopes * gradient[:, None].to(slopes.dtype), None, None
