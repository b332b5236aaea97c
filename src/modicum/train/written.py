"""A trained model as files: the weights' forms in a target's own layout, reloaded and held against what was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.core.errors import ModelError, SettingError
from modicum.data.splits import Batch
from modicum.export import TARGETS
from modicum.export._family import Target
from modicum.export.schemes import inside
from modicum.forms import Activated, Dense, Form, Integer
from modicum.models.model import Model
from modicum.models.open import open_model
from modicum.sweep import rehearse
from modicum.train.accounts import Account, rowed
from modicum.train.settings import require_target

# Widths that every reader of the transformers target unpacks alike.
_WIDTHS = (2, 4, 8)


@dataclass
class Written:
    """What stands on the disk: exact bytes, stored values, and the module that the target's own loader made of it."""

    bytes: int
    values: int
    module: nn.Module
    checked: dict[str, Any]


def account(source: nn.Module | Path, target: str, batch: Batch) -> Account:
    """What methods take in the files of ``target`` for a model, rehearsed on ``batch``. Raises ``SettingError``."""
    require_target(target)
    model = open_model(source)
    if target == "transformers" and model.config is None:
        raise SettingError(f"target: transformers holds models of its own classes, {model.name} is none. Pass modicum.")
    made = TARGETS[target](model, rehearse(model, batch))
    return Account(made, held(made))


def held(target: Target) -> Callable[[str, Form], Form]:
    """As what a target holds forms: our container all as they are, Transformers grids of whole numbers; what it cannot hold is dense."""
    if target.name == "modicum":
        return lambda name, form: form
    model: Model = target.model

    def hold(name: str, form: Form) -> Form:
        inner = inside(form)
        grid = rowed(inner.inner if isinstance(inner, Activated) else inner)
        coded = isinstance(grid, Integer) and grid.bits in _WIDTHS and grid.zero is None
        if not coded or target.refusal(model.units[name]):
            return Dense(form.dense())
        return Activated(grid, inner.inputs) if isinstance(inner, Activated) else grid

    return hold


def write(found: Account, forms: Mapping[str, Form], final: Path, load: Callable[[Path], nn.Module], batch: Batch) -> Written:
    """Write forms by unit, and all other weights dense. Raises ``ModelError`` where files or reloaded weights are not what they must be."""
    spent = found.forms(forms)
    made = {name: found.hold(name, form) for name, form in forms.items()}
    final.mkdir(parents=True, exist_ok=True)
    found.target.layout(made, {}, frozenset()).write(final)
    found.target.finish(final, made, frozenset())
    actual = sum(path.stat().st_size for path in final.iterdir() if path.name.endswith((".safetensors", ".safetensors.index.json")))
    if actual != spent.bytes:
        raise ModelError(f"{final}: must have {spent.bytes} bytes, has {actual}. Report this.")
    _, checked = found.target.verify(final, made, batch)
    return Written(actual, spent.values, load(final), checked)


def require_same(wanted: list[tuple[float, int]], got: list[tuple[float, int]], who: str) -> float:
    """The largest relative difference of losses row by row. Raises ``ModelError`` where it is more than another order of sums makes."""
    worst = max((abs(a - b) / max(abs(a), 1e-9) for (a, _), (b, _) in zip(wanted, got)), default=0.0)
    if not worst <= 1e-3:
        raise ModelError(f"{who}: the reloaded model must answer as the trained one, its loss differs by {worst:.2g}. Report this.")
    return worst


def filled(module: nn.Module, units: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
    """Put trained matrices into a module's own parameters."""
    with torch.no_grad():
        for name, weight in weights.items():
            unit, parameter = units[name], module.get_parameter(units[name].parameter)
            if unit.expert is None:
                parameter.copy_(unit.stored(weight))
            else:
                parameter[unit.expert].copy_(unit.stored(weight))
