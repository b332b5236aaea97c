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
from modicum.core.files import write_json
from modicum.core.output import require_free, writing
from modicum.core.progress import Quiet
from modicum.core.recipe import recipe
from modicum.data.splits import Batch
from modicum.delta import Delta
from modicum.export.loaded import loaded
from modicum.fit.over import dense_beneath
from modicum.forget.forgetter import Forgetter, Loss, Rows, losses
from modicum.forget.judged import attacked, by_layer, comes_back, distance, norms, quality, row_loss
from modicum.forget.rows import overlap, read_rows
from modicum.forms import Base, Dense, Form, Sparse, Sum
from modicum.models.located import locate
from modicum.models.open import model_class, open_model, read_config
from modicum.models.trainable import trainable
from modicum.work.meter import Meter

RECEIPT, RECEIPT_FORMAT = "receipt.json", "modicum-forgotten"
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
    that is no forgetter or an ``out`` that must not be written; ``ModelError`` for a model that cannot be opened.
    """
    asked: Forgetter = recipe("forget", method)
    meter, place = Meter(progress or Quiet()), Path(out) if out is not None else None
    read = [Path(one) for one in (forget, retain, unseen) if isinstance(one, str | Path)]
    if not isinstance(model, nn.Module):
        read.append(locate(model))
    if place is not None:
        require_free(place, read, overwrite)
    with ExitStack() as stack:
        source, module = _opened(model, stack)
        forgets, retains, others = (
            _rows(name, one, source, tokens) for name, one in (("forget", forget), ("retain", retain), ("unseen", unseen))
        )
        if (both := overlap(forgets, retains)) and not allow_overlap:
            raise DataError(
                f"data: {both} of the {len(forgets)} rows to forget must not be among those to retain, are. Remove them from one, or pass "
                "--allow-overlap."
            )
        if not retains:
            raise DataError("data: there must be a row to retain at least, there is none. Give rows to retain.")
        judge: Loss = loss or row_loss
        rows = Rows(forgets, retains, judge, _goal(goal, module, retains, others, judge), seed)
        beside = _reference(reference)
        units = trainable(module)
        before = {name: _matrix(module, units[name]).clone() for name in units}
        told = lambda: {
            "forget": quality(module, forgets, judge),
            "retain": quality(module, retains, judge),
            "unseen": quality(module, others, judge),
        }
        with meter.stage("judging"):
            first = told()
        started = time.perf_counter()
        with meter.stage("forgetting"):
            if forgets:
                asked.forget(module, rows)
        seconds = time.perf_counter() - started
        stored = {name: unit.dtype for name, unit in (trainable(source.module) if source else units).items()}
        delta = _change(module, before, stored, str(model) if source else type(model).__name__)
        if source is not None:
            read_base = lambda name: units[name].matrix(source.weights.read(units[name].parameter))
            delta = delta.stamped(read_base)
            for name, made in delta.on(read_base):  # judged as it is stored
                _matrix(module, units[name]).copy_(made.float())
        with meter.stage("judging"):
            receipt: dict[str, Any] = {
                "format": RECEIPT_FORMAT, "version": 1, "model": str(model) if source else type(model).__name__, "method": str(asked),
                "goal": rows.goal, "overlap": both, "seed": seed, "bytes": delta.nbytes, "changed": norms(module, before),
                "seconds": seconds, "before": first, "after": told(),
            }  # fmt: skip
            if delta.forms:
                receipt["layers"] = by_layer(module, before, rows)
            if forgets and others:
                receipt["attack"] = {"after": attacked(module, forgets, others, judge)}
                if beside is not None:
                    receipt["attack"]["reference"] = attacked(beside, forgets, others, judge)
            if forgets and beside is not None:
                receipt["distance"] = {"forget": distance(module, beside, forgets), "retain": distance(module, beside, retains)}
                receipt["reference"] = {"forget": quality(beside, forgets, judge), "retain": quality(beside, retains, judge)}
        if relapse and forgets:
            with meter.stage("relapse"):
                receipt["comes back"] = comes_back(module, rows)
        receipt["stages"] = meter.stages
    if place is not None:
        with writing(place, read, overwrite) as folder:
            delta.save(folder)
            write_json(folder / RECEIPT, receipt)
    return Forgotten(delta, module, receipt, place)


def _opened(model: str | Path | nn.Module, stack: ExitStack) -> tuple[Any, nn.Module]:
    """A checkpoint, None for a module in memory, and a working copy in float32."""
    if isinstance(model, nn.Module):
        return None, copy.deepcopy(model).eval()
    dense = stack.enter_context(dense_beneath(locate(model)))
    return open_model(dense), loaded(model_class(read_config(dense), str(model)), dense).float().eval()


def _rows(name: str, given: Any, source: Any, tokens: int) -> Sequence[Batch]:
    if given is None:
        return []
    if isinstance(given, str | Path):
        if source is None:
            raise SettingError(f"{name}: must be a list of batches where the model is a module, is a path. Pass rows.")
        return read_rows(given, source.tokenizer, tokens)
    return list(given)


def _goal(given: float | None, module: nn.Module, retain: Sequence[Batch], unseen: Sequence[Batch], loss: Loss) -> float:
    if given is not None:
        return float(given)
    if unseen:
        return float(losses(module, unseen, loss).mean())
    if not isinstance(retain[0], dict):
        with torch.no_grad():
            found = module(*retain[0][:-1])
        return math.log(getattr(found, "logits", found).shape[-1])
    return float(losses(module, retain, loss).mean()) + 1.0


def _reference(given: Any) -> nn.Module | None:
    if given is None or isinstance(given, nn.Module):
        return given.eval() if given is not None else None
    directory = locate(given)
    return loaded(model_class(read_config(directory), str(given)), directory).float().eval()


def _matrix(module: nn.Module, unit: Any) -> torch.Tensor:
    found: torch.Tensor = unit.matrix(module.get_parameter(unit.parameter).detach())
    return found


def _change(module: nn.Module, before: dict[str, torch.Tensor], stored: dict[str, torch.dtype], base: str) -> Delta:
    """What changed: few entries by their places, else the whole change."""
    units, forms = trainable(module), dict[str, Form]()
    for name, old in before.items():
        change = (_matrix(module, units[name]) - old).float()
        if count := int((change != 0).sum()):
            leaf, flat = Base((old.shape[0], old.shape[1]), stored[name], name), change.reshape(-1)
            places = flat.nonzero()[:, 0]
            few = Sparse(flat[places].clone(), leaf.shape, places.to(torch.int32)) if count < _FEW * flat.numel() else None
            forms[name] = Sum((leaf, few or Dense(change.contiguous().clone())))
    delta = Delta(forms, base=base)
    return delta.stamped(lambda name: before[name].to(stored[name]))
