"""A change read from a folder, whoever wrote it, and told in rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from modicum.core.errors import SettingError
from modicum.core.files import no_delta
from modicum.delta.applying import base_weights
from modicum.delta.delta import Delta, is_delta
from modicum.delta.peft import from_peft, is_peft
from modicum.forms import Form
from modicum.models.open import open_model

# A share of a spectrum's energy that counts as all of it: what lies beyond is rounding.
_WHOLE = 1 - 1e-4


def opened(path: Path, base: str | Path | None = None) -> Delta:
    """The delta in a folder, or the adapter of PEFT, which is read on its ``base``. Raises ``SettingError`` for a folder that holds none."""
    if is_delta(path):
        return Delta.load(path)
    if is_peft(path):
        if base is None:
            raise SettingError(f"{path}: is an adapter of PEFT, which is read on its base. Name the base.")
        return from_peft(path, base)
    raise no_delta(path)


def described(delta: Delta, base: str | Path | None = None) -> list[dict[str, Any]]:
    """A row for each weight: form and bytes; with a base the norm of its change, alone and relative, how many directions have half its energy, and
    as ``spectrum`` what share of it lies in the first direction, the first two, the first four, and so on to the last in which there is any.
    """
    rows: list[dict[str, Any]] = [{"weight": name, "form": _kinds(form), "bytes": form.nbytes} for name, form in delta.forms.items()]
    beside = [{"weight": f"beside {each.place or 'the model'}", "form": each.method, "bytes": each.nbytes} for each in delta.asides]
    if base is None:
        return rows + beside
    read = base_weights(open_model(base))
    for row, (name, made) in zip(rows, delta.on(read)):
        old = read(name).double()
        energy = torch.linalg.svdvals(made.double() - old).square()
        half = int((energy.cumsum(0) < 0.5 * energy.sum()).sum()) + 1
        norm = float(energy.sum().sqrt())
        row |= {"norm": norm, "relative": norm / max(float(old.norm()), 1e-300), "half": half, "spectrum": _spectrum(energy)}
    return rows + beside


def _spectrum(energy: torch.Tensor) -> dict[str, float]:
    """The share of the energy in the first 1, 2, 4, ... directions, to the one that completes it."""
    total, found = float(energy.sum()), dict[str, float]()
    count = 1
    while total and max(found.values(), default=0.0) < _WHOLE and count < 2 * len(energy):
        found[str(count)] = float(energy[:count].sum()) / total
        count *= 2
    return found


def _kinds(form: Form) -> str:
    parts = [_kinds(part) for part in getattr(form, "parts", ())]
    return f"{form.kind}({', '.join(parts)})" if parts else form.kind
