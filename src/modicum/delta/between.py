"""The change from one checkpoint to another, such as a model that was fine-tuned in full."""

from __future__ import annotations

from pathlib import Path

import torch

from modicum.core.errors import ModelError, quoted
from modicum.delta.applying import base_weights
from modicum.delta.delta import Delta
from modicum.forms import Dense
from modicum.models.open import open_model
from modicum.models.trainable import trainable
from modicum.models.weights import require_finite


def between(tuned: str | Path, base: str | Path, *, rank: int | None = None) -> Delta:
    """What ``tuned`` has otherwise than ``base``: whole weights, or with ``rank`` the nearest product of that rank for each matrix.

    Weights that are the same to the bit are left out, and vectors (norms, biases) stay whole. Applied to the base, whole weights give the
    tuned model to the bit where both store one dtype.

    Raises ``ModelError`` for models that have other weights, or weights of other shapes.
    """
    one, other = open_model(tuned), open_model(base)
    units, theirs = trainable(one.module), trainable(other.module)
    if odd := sorted(units.keys() ^ theirs.keys()):
        raise ModelError(
            f"{one.name}: must have the weights of {other.name}, differs in {quoted(odd[0])}. Name the model it was tuned from."
        )
    mine, read = base_weights(one), base_weights(other)
    forms = {}
    for name, unit in units.items():
        if unit.shape != theirs[name].shape:
            raise ModelError(f"{name}: must have one shape in both models, has {unit.shape} and {theirs[name].shape}.")
        new, old = mine(name), read(name)
        require_finite(f"{one.name}, {name}", new)
        if not torch.equal(new.to(old.dtype), old):
            forms[name] = Dense(new.to(old.dtype).contiguous().clone())
    whole = Delta(forms, base=str(base)).stamped(read)
    if rank is None:
        return whole
    matrices = {name: form for name, form in whole.forms.items() if form.shape[0] > 1}
    ranked = Delta(matrices, base=str(base)).ranked(rank, read).stamped(read)
    return Delta({**whole.forms, **ranked.forms}, base=str(base))
