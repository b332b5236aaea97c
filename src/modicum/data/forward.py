"""Batches and the forward that takes them: what does not suit it is told as the caller's own, before any work."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from modicum.core.errors import DataError, ModicumError, quoted
from modicum.data.splits import Batch, Splits, call

_SHOWN = 8  # arguments of a forward, and tensors of a batch
_IDS = ("input_ids", "chosen_ids", "rejected_ids")
_PLACES = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
LABELS_LEFT_OUT = (
    "Every batch is an input and a tensor of whole numbers, one entry for each row; forward takes one argument, so the second was taken for "
    "labels and left out."
)


@contextmanager
def own_errors(module: nn.Module, batch: Batch) -> Iterator[None]:
    """Tell what the module's own forward raises as its own, with what a batch must be. Raises ``DataError``."""
    try:
        yield
    except ModicumError:
        raise
    except Exception as error:  # whatever a caller's code raises
        name = type(module).__name__
        raise DataError(
            f"{name}: its forward must take the batches as they come, {described(batch)} came, and it raises {type(error).__name__}: "
            f"{quoted(error)}. A batch must be a tensor, a tuple of tensors in the order of forward's arguments, or a dict of tensors by "
            f"their names, here {_arguments(module)}; leave labels out."
        ) from error


def require_suitable(module: nn.Module, batch: Batch) -> None:
    """Raise ``DataError`` where the module's forward cannot be called with the batch, or raises when run on it as the caller would."""
    with own_errors(module, batch), torch.no_grad():
        call(module, batch)


def require_tokens(module: nn.Module, rows: Sequence[Batch]) -> None:
    """Raise ``DataError`` where rows of token ids have one that the model has no embedding of, or the longest is more than its forward takes."""
    table = getattr(module, "get_input_embeddings", lambda: None)()
    read = [row[name] for row in rows if isinstance(row, dict) for name in _IDS if name in row]
    if not read or not isinstance(table, nn.Embedding):
        return
    for ids in read:
        if ids.numel() and (most := int(ids.max())) >= table.num_embeddings:
            raise DataError(
                f"data: its tokens must be among the {table.num_embeddings:,} that the model knows, one is number {most:,}. Use the tokenizer that "
                "the model was trained with."
            )
    longest = max(read, key=lambda ids: ids.shape[-1])[:1]
    try:
        with torch.no_grad():
            call(module, {"input_ids": longest})
    except Exception as error:  # whatever a model raises
        raise DataError(
            f"data: the longest sequence must suit {type(module).__name__}, has {longest.shape[-1]:,} tokens, on which it raises "
            f"{type(error).__name__}: {quoted(error)}. Shorten it, or lower --tokens."
        ) from error


def without_labels(module: nn.Module, splits: Splits) -> Splits:
    """The same batches without their labels, with a note, where only that reading is possible; else as they came."""
    parts = (splits.calibration, splits.validation, splits.test)
    if not all(is_labelled(module, part) for part in parts):
        return splits
    calibration, validation, test = map(_inputs, parts)
    return replace(splits, calibration=calibration, validation=validation, test=test, notes=(*splits.notes, LABELS_LEFT_OUT))


def _inputs(part: Sequence[Batch]) -> list[Batch]:
    """The first tensor of every pair."""
    return [batch[:1] for batch in part if isinstance(batch, tuple)]


def is_labelled(module: nn.Module, batches: Sequence[Batch]) -> bool:
    """Whether every batch is an input with labels: a pair whose second are whole numbers by rows, for a forward of one argument."""
    taken = inspect.signature(module.forward).parameters.values()
    one = len(taken) == 1 and all(parameter.kind in _PLACES for parameter in taken)
    return one and all(_is_pair(batch) for batch in batches)


def _is_pair(batch: Batch) -> bool:
    if not isinstance(batch, tuple) or len(batch) != 2:
        return False
    inputs, labels = batch
    whole = not labels.is_floating_point() and not labels.is_complex()
    return bool(whole and inputs.ndim and labels.ndim and len(inputs) == len(labels))


def described(batch: Batch) -> str:
    """A batch in words: shapes and types."""
    entries: list[tuple[Any, Tensor]] = list(batch.items()) if isinstance(batch, dict) else [("", value) for value in batch]
    shown = [f"{key + ' ' if key else ''}{str(value.dtype)[6:]} {list(value.shape)}" for key, value in entries[:_SHOWN]]
    more = f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
    kind = "a dict of " if isinstance(batch, dict) else "a tuple of " if len(entries) > 1 else ""
    return f"{kind}{', '.join(shown)}{more}"


def _arguments(module: nn.Module) -> str:
    names = list(inspect.signature(module.forward).parameters)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN]) or 'none'}{more}"
