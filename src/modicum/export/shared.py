"""Tensors that several weights of a container share: each is stored once, beside what the weights have of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from modicum.core.errors import ModelError, quoted
from modicum.core.tensorfile import Shards
from modicum.forms import Form, Shared, restore
from modicum.forms.composite import Composite
from modicum.forms.leaves import beside

PREFIX = "shared: "


def stored(forms: Iterable[Form]) -> dict[str, torch.Tensor]:
    """What forms share, by its name in a file."""
    return {PREFIX + name: tensor.contiguous() for name, tensor in beside(forms).items()}


def read(shards: Shards) -> dict[str, torch.Tensor]:
    """What the weights of a container share, by its name in their forms."""
    return {name.removeprefix(PREFIX): shards.read(name) for name in shards.names() if name.startswith(PREFIX)}


def restored(described: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], shared: Mapping[str, torch.Tensor]) -> Form:
    """A form of a file, with what it shares at hand. Raises ``ModelError`` for parts that do not fit together."""
    if not shared:
        return restore(described, tensors)
    form = _attached(restore(described, tensors, known=True), shared)
    try:
        form.dense()
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise ModelError(
            f"compressed weight: of kind {form.kind}, its tensors and settings must fit together ({quoted(error)}). Write the file anew."
        ) from None
    return form


def _attached(form: Form, shared: Mapping[str, torch.Tensor]) -> Form:
    if isinstance(form, Composite):
        return form.made_of([_attached(part, shared) for part in form.parts])
    if not isinstance(form, Shared):
        return form
    tensor = shared.get(form.name)
    if tensor is None or tensor.ndim != 2 or any(has < asked for has, asked in zip(tensor.shape, form.shape)):
        raise ModelError(f"container: shared tensor {quoted(form.name)} of at least {form.shape} must be there. Write the files anew.")
    return Shared(form.name, form.shape, form.dtype, tensor)
