"""Rows in, a change out, with what is still known of them and what it cost."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.core.arguments import checked
from modicum.core.errors import DataError, SettingError
from modicum.core.output import require_free, write_receipt, writing
from modicum.core.progress import Quiet
from modicum.core.recipe import recipe
from modicum.data.splits import Batch
from modicum.delta import Delta
from modicum.fit.working import working
from modicum.forget.forgetter import Forgetter, Rows
from modicum.forget.judged import FEWEST, by_layer, comes_back, held_against, known, norms
from modicum.forget.rows import distinct, overlap, read_rows
from modicum.forms import Base, Dense, Form, Sparse, Sum
from modicum.models.located import locate
from modicum.models.model import Model
from modicum.models.trainable import matrix, trainable
from modicum.train.rows import Loss, losses, row_loss
from modicum.work.meter import Meter

RECEIPT_FORMAT = "modicum-forgotten"
# A change of fewer of a weight's entries is stored by their places.
_FEW = 0.3


@dataclass(frozen=True)
class Forgotten:
    """What ``forget`` made: the change, the module with it, the receipt, and the folder where the change stands, None where nobody named one."""

    delta: Delta
    module: nn.Module
    receipt: dict[str, Any]
    out: Path | None


@checked(but=("model", "forget", "retain", "unseen", "reference", "loss"))
def forget(
    model: str | Path | nn.Module,
    forget: str | Path | Sequence[Batch],
    retain: str | Path | Sequence[Batch],
    out: str | Path | None = None,
    *,
    method: str = "ssd",
    unseen: str | Path | Sequence[Batch] | None = None,
    reference: str | Path | nn.Module | None = None,
    loss: Callable | None = None,
    goal: float | None = None,
    tokens: int = 128,
    relapse: bool = True,
    allow_overlap: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    progress: Quiet | None = None,
) -> Forgotten:
    """Take rows of data out of what a model learnt, and give the change as a delta.

    ``model``: a language model (``demo``, a directory, a Hugging Face id) with files of rows, JSON lines of ``prompt`` and ``completion`` or of
    ``text``; or a module, with lists of batches of one row each: inputs and a class (tuples), or ``input_ids``, ``attention_mask`` and ``labels``.
    The module is left as it is, and so are codes and masks of a compressed model, which ``apply`` lays the change over. ``unseen`` rows, that no
    training saw, and a ``reference`` that never saw the rows to forget are what the receipt holds the result against.
    ``loss(module, batch)`` (rows,) takes the place of the cross entropy; ``goal`` is the loss of a row that nothing
    is known of, by default that of the unseen rows, else of a uniform guess among classes, else one nat above the retained loss.

    The receipt says the loss and accuracy on the rows to forget, to retain and unseen ones, before and after; how well an attack by the loss
    tells forgotten rows from unseen ones, here and with the reference; the divergence from the reference; and, with ``relapse``, what comes back
    after a fit to 4 bits and after 50 updates on rows to retain.

    *Raises*: ``DataError`` for rows that cannot be read, or that stand in both sets unless ``allow_overlap``; ``SettingError`` for a method
    that is no forgetter or an ``out`` that must not be written; ``ModelError`` for a model that cannot be opened or is no causal language model.
    """
    asked: Forgetter = recipe("forget", method)
    meter, place = Meter(progress or Quiet()), Path(out) if out is not None else None
    read = [Path(one) for one in (forget, retain, unseen) if isinstance(one, str | Path)]
    if not isinstance(model, nn.Module):
        read.append(locate(model))
    if place is not None:
        require_free(place, read, overwrite)
    with ExitStack() as stack:
        source, module = (
            (None, copy.deepcopy(model).eval()) if isinstance(model, nn.Module) else stack.enter_context(working(model, tokens))
        )
        forgets, retains, others = (
            _rows(name, one, source, tokens) for name, one in (("forget", forget), ("retain", retain), ("unseen", unseen))
        )
        both = _require_apart(forgets, retains, allow_overlap, relapse)
        judge: Loss = loss or row_loss
        rows = Rows(forgets, retains, judge, _goal(goal, module, retains, others, judge), seed)
        beside = reference.eval() if isinstance(reference, nn.Module) else None
        if reference is not None and beside is None:
            _, beside = stack.enter_context(working(reference, tokens))  # type: ignore[arg-type]
        before = {name: matrix(module, unit).clone() for name, unit in trainable(module).items()}
        with meter.stage("judging"):
            first = known(module, rows, others)
        started = time.perf_counter()
        with meter.stage("forgetting"):
            if forgets:
                asked.forget(module, rows)
        seconds = time.perf_counter() - started
        named = type(module).__name__ if isinstance(model, nn.Module) else str(model)
        delta = _change(module, before, source, named)
        with meter.stage("judging"):
            receipt: dict[str, Any] = {
                "format": RECEIPT_FORMAT, "version": 1, "model": named, "method": str(asked), "goal": rows.goal, "overlap": both, "seed": seed,
                "bytes": delta.nbytes, "changed": norms(module, before), "seconds": seconds, "before": first,
                "after": known(module, rows, others),
            }  # fmt: skip
            if delta.forms:
                receipt["layers"] = by_layer(module, before, rows)
            receipt |= held_against(module, beside, rows, others)
        if relapse and forgets:
            with meter.stage("relapse"):
                receipt["comes back"] = comes_back(module, rows)
        receipt["stages"] = meter.stages
    if place is not None:
        with writing(place, read, overwrite) as folder:
            delta.save(folder)
            write_receipt(folder, receipt)
    return Forgotten(delta, module, receipt, place)


def _rows(name: str, given: Any, source: Any, tokens: int) -> Sequence[Batch]:
    if given is None:
        return []
    if isinstance(given, str | Path):
        if source is None:
            raise SettingError(f"{name}: must be a list of batches where the model is a module, is a path. Pass rows.")
        return read_rows(given, source.tokenizer, tokens)
    return list(given)


def _require_apart(forget: Sequence[Batch], retain: Sequence[Batch], allow_overlap: bool, relapse: bool) -> int:
    """How many rows to forget are to be retained too. Raises ``DataError`` for any where nobody allowed it, and for too few to retain."""
    if (both := overlap(forget, retain)) and not allow_overlap:
        raise DataError(
            f"data: {both} of the {len(forget)} rows to forget must not be among those to retain, are. Remove them from one, or pass "
            "--allow-overlap."
        )
    if (count := distinct(retain)) < (least := FEWEST if relapse and forget else 1):
        advice = " or pass --no-relapse" if count else ""
        raise DataError(f"data: there must be at least {least} different rows to retain, {count} came. Give more rows{advice}.")
    return both


def _goal(given: float | None, module: nn.Module, retain: Sequence[Batch], unseen: Sequence[Batch], loss: Loss) -> float:
    """The loss of a row that nothing is known of."""
    if given is not None:
        if not math.isfinite(given):
            raise SettingError(f"goal: must be a number of nats, got {given}.")
        return float(given)
    if unseen:
        return float(losses(module, unseen, loss).mean())
    if not isinstance(retain[0], dict):
        with torch.no_grad():
            found = module(*retain[0][:-1])
        return math.log(getattr(found, "logits", found).shape[-1])
    return float(losses(module, retain, loss).mean()) + 1.0


def _change(module: nn.Module, before: dict[str, torch.Tensor], source: Model | None, base: str) -> Delta:
    """What changed, few entries by their places, else the whole change. The module of a checkpoint then has the weights that it makes as stored."""
    units, forms = trainable(module), dict[str, Form]()
    dtypes = {name: unit.dtype for name, unit in (trainable(source.module) if source else units).items()}
    for name, old in before.items():
        change = (matrix(module, units[name]) - old).float()
        if count := int((change != 0).sum()):
            leaf, flat = Base((old.shape[0], old.shape[1]), dtypes[name], name), change.reshape(-1)
            places = flat.nonzero()[:, 0]
            few = Sparse(flat[places].clone(), leaf.shape, places.to(torch.int32)) if count < _FEW * flat.numel() else None
            forms[name] = Sum((leaf, few or Dense(change.contiguous().clone())))
    if source is None:
        return Delta(forms, base=base).stamped(lambda name: before[name].to(dtypes[name]))
    read = lambda name: units[name].matrix(source.weights.read(units[name].parameter))
    delta = Delta(forms, base=base).stamped(read)
    for name, made in delta.on(read):
        matrix(module, units[name]).copy_(made.float())
    return delta
