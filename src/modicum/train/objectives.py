"""What is minimized: functions of a module and a batch that give a sum over tokens, and how many there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn

from modicum.core.errors import DataError
from modicum.data.answers import IGNORED
from modicum.data.splits import Batch, call
from modicum.sweep.outputs import CLASSES, INDEPENDENT, Outputs

Objective = Callable[[nn.Module, Batch], tuple[torch.Tensor, int]]
"""Gives the loss (rows,) of each row of a batch, summed over its tokens, and the number of tokens over all rows."""

TokenLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Losses (tokens,) of logits (tokens, vocabulary) and of what is wanted (tokens, ...)."""

# The least probability that is taken for that of all other tokens.
_LEAST = 1e-7
# Logits that are in memory at a time, in numbers: fewer make thin products, more leave the cache.
_LOGITS = 1 << 23


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
    losses = losses.masked_scatter(met, _HeadLoss.apply(hidden[met], wanted[met], head, _entropy))
    return losses.sum(1), int(met.sum())


def distillation(teacher: nn.Module, temperature: float = 1.0, top: int = 0) -> Objective:
    """Kullback-Leibler divergence from a teacher's next tokens to the module's, in nats, over the same tokens.

    With ``top``, of the teacher's that many likeliest tokens and of all others as one; 0: of each token. Logits of both are made some at a time and
    let go at once with their gradient taken, as for ``next_token``.
    """

    def objective(module: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        met = targets(batch) != IGNORED
        heads = [_lean_head(each, batch) for each in (module, teacher)]
        with torch.no_grad(), _unheaded(heads[1]):
            known = call(teacher, _given(batch)).logits[:, :-1]
        with _unheaded(heads[0]):
            said = call(module, _given(batch)).logits[:, :-1]
        judge = lambda logits, theirs: diverging(logits, theirs if heads[1] is None else heads[1](theirs), temperature, top)
        each = judge(said[met], known[met]) if heads[0] is None else _HeadLoss.apply(said[met], known[met], heads[0], judge)
        losses = said.new_zeros(met.shape, dtype=torch.float32).masked_scatter(met, each)
        return losses.sum(1), int(met.sum())

    return objective


def diverging(logits: torch.Tensor, known: torch.Tensor, temperature: float = 1.0, top: int = 0) -> torch.Tensor:
    """Divergence (tokens,) from the distributions of ``known`` logits (tokens, classes) to those of ``logits``, in nats.

    With ``top`` that of so many likeliest classes and of the rest as one, which is never more than that of each class.
    """
    p, q = ((each.float() / temperature).log_softmax(-1) for each in (known, logits))
    if 0 < top < p.shape[-1]:
        p, places = p.topk(top)
        p, q = _with_rest(p), _with_rest(q.gather(-1, places))
    return (p.exp() * (p - q)).sum(-1) * temperature**2


def _with_rest(logs: torch.Tensor) -> torch.Tensor:
    """Log probabilities (tokens, top), and that of all others (tokens, top + 1)."""
    rest = (1 - logs.exp().sum(-1, keepdim=True)).clamp_min(_LEAST)
    return torch.cat([logs, rest.log()], -1)


def imitation(teacher: nn.Module, outputs: Outputs) -> Objective:
    """How far a module's answers are from a teacher's, of any kind: the divergence of classes, and of other values the relative squared error.

    ``outputs`` says what is judged; the first part is learnt, all its entries weigh alike.
    """

    def objective(module: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        with torch.no_grad():
            part, known = next(iter(outputs.of(call(teacher, batch))))
        _, said = next(iter(outputs.of(call(module, batch))))
        known, said = known.float(), said.float()
        if part.kind == CLASSES:
            each = diverging(said.flatten(0, -2), known.flatten(0, -2)).view(said.shape[:-1])
        elif part.kind == INDEPENDENT:
            each = F.binary_cross_entropy_with_logits(said, known.sigmoid(), reduction="none")
            each = each - F.binary_cross_entropy_with_logits(known, known.sigmoid(), reduction="none")
        else:
            each = (said - known).square() / known.square().mean().clamp_min(torch.finfo(torch.float32).tiny)
        real = part.real(batch, known)
        mask = torch.ones_like(each, dtype=torch.bool) if real is None or real.shape != each.shape else real
        return each.masked_fill(~mask, 0).reshape(len(each), -1).sum(1), int(mask.sum())

    return objective


def classes(module: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
    """Cross-entropy of each row's class, in nats: ``labels`` (rows,) of a dict, or the last of a tuple's tensors, under logits (rows, classes).

    For sequences and pictures alike; the module gives logits, or an output that has them. Raises ``DataError`` for other labels or logits.
    """
    inputs, labels = _labelled(batch)
    found = call(module, inputs)
    logits = getattr(found, "logits", found)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or labels.shape != logits.shape[:1] or labels.is_floating_point():
        raise DataError(f"data: one class per row must stand beside logits (rows, classes), labels of {tuple(labels.shape)} came.")
    if bool((labels >= logits.shape[1]).any()) or bool((labels < 0).any()):
        raise DataError(f"data: classes must be from 0 to {logits.shape[1] - 1}, one is {int(labels.max())}. Check the labels.")
    return F.cross_entropy(logits.float(), labels, reduction="none"), len(labels)


def _labelled(batch: Batch) -> tuple[Batch, torch.Tensor]:
    if isinstance(batch, dict):
        if "labels" not in batch:
            raise DataError("data: a batch of classes must have labels, has none.")
        return _given(batch), batch["labels"]
    return batch[:-1], batch[-1]


CHOSEN, REJECTED = "chosen", "rejected"


def preference(reference: nn.Module | None = None, beta: float = 0.1) -> Objective:
    """Direct preference optimization (arXiv 2305.18290): ``-log sigmoid(beta · (gain of the chosen answer - gain of the rejected one))`` per pair.

    A gain is an answer's log-probability less that under the ``reference``. Batches have ``chosen_ids`` and ``rejected_ids`` (rows, tokens) with
    ``chosen_labels`` and ``rejected_labels``, -100 where nothing is judged; without a reference module also ``chosen_reference`` and
    ``rejected_reference`` (rows,), which ``referred`` adds, so that the reference need not stay in memory.
    """

    def objective(module: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        pair = _pair(batch)
        gains = {}
        for side in (CHOSEN, REJECTED):
            if reference is not None:
                with torch.no_grad():
                    before = _likelihood(reference, pair, side)
            elif f"{side}_reference" in pair:
                before = pair[f"{side}_reference"]
            else:
                raise DataError(f"data: {side}_reference must be in a batch of pairs where no reference module is given, is not.")
            gains[side] = _likelihood(module, pair, side) - before
        losses = -F.logsigmoid(beta * (gains[CHOSEN] - gains[REJECTED]))
        return losses, len(losses)

    return objective


def referred(module: nn.Module, rows: Sequence[Batch]) -> list[Batch]:
    """Rows of pairs with what the module, as it stands, gives them as a reference."""
    with torch.no_grad():
        return [
            {**_pair(row), **{f"{side}_reference": _likelihood(module, _pair(row), side) for side in (CHOSEN, REJECTED)}} for row in rows
        ]


def _pair(batch: Batch) -> dict[str, torch.Tensor]:
    wanted = [f"{side}_{part}" for side in (CHOSEN, REJECTED) for part in ("ids", "labels")]
    if not isinstance(batch, dict) or any(name not in batch for name in wanted):
        raise DataError(f"data: a batch of pairs must have {', '.join(wanted)}.")
    return batch


def _likelihood(module: nn.Module, pair: dict[str, torch.Tensor], side: str) -> torch.Tensor:
    """Log-probability (rows,) of an answer."""
    batch: Batch = {"input_ids": pair[f"{side}_ids"], "labels": pair[f"{side}_labels"]}
    return -next_token(module, batch)[0]


def _given(batch: Batch) -> Batch:
    assert isinstance(batch, dict)
    return {name: value for name, value in batch.items() if name != "labels"}


def _whole(module: nn.Module, batch: Batch, wanted: torch.Tensor) -> torch.Tensor:
    logits = call(module, _given(batch)).logits
    flat = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none")
    return flat.view(wanted.shape).sum(1)


# By module, and by what an aside calls it with: whether its head alone gives its logits.
_LEAN: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def _lean_head(module: nn.Module, batch: Batch) -> nn.Module | None:
    """The module's head where the loss can be had of it alone, found out once for each module and each aside of it."""
    found: Any = getattr(module, "get_output_embeddings", lambda: None)()
    if not isinstance(found, nn.Linear) or any(_is_trained(found, name) for name in found._parameters):
        return None
    made_by = module.__dict__.get("forward", module)
    if made_by not in _LEAN:
        _LEAN[made_by] = _gives_logits(module, found, batch)
    return found if _LEAN[made_by] else None


def _gives_logits(module: nn.Module, head: nn.Linear, batch: Batch) -> bool:
    """Whether the head, of what the module gives without it, gives the module's logits to the bit."""
    assert isinstance(batch, dict)
    row: Batch = {name: value[:1] for name, value in batch.items()}
    with torch.no_grad():
        logits = call(module, _given(row)).logits
        try:
            with _unheaded(head):
                hidden = call(module, _given(row)).logits
        except RuntimeError:  # what computes with the logits themselves
            return False
        return hidden.shape[-1] == head.in_features and torch.equal(head(hidden), logits)


def _is_trained(head: nn.Module, name: str) -> bool:
    value = getattr(head, name)
    return value is not None and value.requires_grad


def _entropy(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float(), wanted, reduction="none")


@contextmanager
def _unheaded(head: nn.Module | None) -> Iterator[None]:
    """Inside, the head gives what it is given; None for no head."""
    if head is None:
        yield
        return
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
    """Losses (tokens,) of hidden states (tokens, width) under a head that is not trained; the gradient is taken while the logits are there.

    ``loss`` is given some tokens' logits and what is ``wanted`` of them, of which each token has a row.
    """

    @staticmethod
    def forward(ctx, hidden: torch.Tensor, wanted: torch.Tensor, head: nn.Module, loss: TokenLoss) -> torch.Tensor:
        wants, step = ctx.needs_input_grad[0], max(1, _LOGITS // head.out_features)  # type: ignore[operator]
        losses, slopes = [], []
        for some, goals in zip(hidden.split(step), wanted.split(step)):
            with torch.set_grad_enabled(wants):
                leaf = some.detach().requires_grad_(wants)
                each = loss(head(leaf), goals)
                if wants:
                    slopes.append(torch.autograd.grad(each.sum(), leaf)[0])
            losses.append(each.detach())
        ctx.save_for_backward(*([torch.cat(slopes)] if slopes else []))
        return torch.cat(losses) if losses else hidden.new_zeros(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        (slopes,) = ctx.saved_tensors
        return slopes * gradient[:, None].to(slopes.dtype), None, None, None
