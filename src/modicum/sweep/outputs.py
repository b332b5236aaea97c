"""What an output is: which of its tensors count, and which of them are scores of classes, along which axis."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from modicum.core.errors import ModelError

# Scores of classes, by the names that Transformers gives them.
_SCORES = ("logits", "prediction_logits")
# What a model gives beside its answer: not judged where there is an answer by name.
_ASIDE = re.compile(r"loss|hidden|attention|state|cache|past|key_values|pooler|embed|router|aux", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """One tensor of an output. Of scores (``classes``) the last axis holds the classes."""

    name: str
    value: torch.Tensor
    classes: bool = False


def parts(output: Any) -> list[Part]:
    """The tensors that stand for a model's output, the first of them first. Raises ``ModelError`` where there is none.

    Scores are what is called logits: of classes along the last axis, or, of an image's places, along the second. A single logit has no other
    class to be compared with, and pairs (a picture's likeness to a text) are no classes of one thing: they are values, as all else is. A
    scalar is a loss and belongs to no row.
    """
    if isinstance(output, list) and output and all(isinstance(part, Part) for part in output):
        return output  # parted already
    named = dict(_named(output))
    for name in _SCORES:
        if isinstance(value := named.get(name), torch.Tensor) and value.ndim:
            beside = [Part(other, tensor) for other, tensor in named.items() if other not in _SCORES and not _ASIDE.search(other)]
            return [_scores(name, value), *(part for part in beside if len(part.value) == len(value))]
    found = [Part(name, value) for name, value in named.items()]
    if not found:
        raise ModelError("model: its output must hold a float tensor, holds none. Wrap it so that forward returns logits or features.")
    return [found[0], *(part for part in found[1:] if not _ASIDE.search(part.name))]


def _scores(name: str, value: torch.Tensor) -> Part:
    if value.ndim == 4:
        value = value.movedim(1, -1)
    return Part(name, value, classes=value.shape[-1] > 1)


def _named(output: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Float tensors of rows in an output, one level deep, by name or place."""
    if isinstance(output, torch.Tensor):
        entries: Any = [("output", output)]
    elif isinstance(output, Mapping):
        entries = output.items()
    elif isinstance(output, list | tuple):
        names = getattr(output, "_fields", None) or [f"output {place}" for place in range(len(output))]
        entries = zip(names, output)
    else:
        entries = vars(output).items() if hasattr(output, "__dict__") else []
    for name, value in entries:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim:
            yield str(name), value


def output_tensor(output: Any) -> tuple[torch.Tensor, bool]:
    """The tensor that stands for a model's output, and whether it holds scores of classes along its last axis. Raises ``ModelError``."""
    first = parts(output)[0]
    return first.value, first.classes
