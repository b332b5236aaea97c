"""What a merge is given, opened: a layout, models and their weights, whether said in a command or in a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modicum.core.errors import ModelError, SettingError, quoted
from modicum.merge._family import Merge
from modicum.merging.layered import LAYER, Layered, config_of
from modicum.merging.mixture import mixture
from modicum.merging.plan import Entry, Plan, Weight, at
from modicum.merging.sources import Moved, Source, Stored, source
from modicum.merging.vocabularies import require_one
from modicum.models.located import locate

# What a config says of the computation that no tensor's shape tells.
_SAID = (
    "architectures", "head_dim", "hidden_act", "layer_norm_eps", "n_head", "num_attention_heads", "num_key_value_heads", "rms_norm_eps",
    "rope_parameters", "rope_scaling", "rope_theta", "sliding_window",
)  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """The ``base`` that gives layout and values, the ``models`` with a weight each, and the checkpoints that they are made of, the base's first."""

    base: Source
    models: tuple[Source, ...]
    weights: tuple[Weight, ...]
    checkpoints: tuple[Stored, ...]
    given: tuple[Source, ...]

    @property
    def layers(self) -> int:
        """How many layers the result has."""
        numbers = {int(match[2]) for name in self.base.names() if (match := LAYER.match(name))}
        return max(numbers, default=-1) + 1


def unlike(inputs: Inputs) -> list[str]:
    """What models' configs say of the computation otherwise than the base's, whose counts: tensors of one shape may be of other models."""
    first = config_of(inputs.checkpoints[0])
    told = []
    for each in inputs.given:
        body = config_of(each)
        apart = [key for key in _SAID if key in first and key in body and first[key] != body[key]]
        told += [
            f"{each.label}: its config says {quoted(f'{key} {body[key]}')}, the base's {quoted(str(first[key]))}, which counts"
            for key in apart
        ]
    return told


def opened(plan: Plan, method: Merge) -> Inputs:
    """Open what a plan names. Raises ``ModelError`` for what cannot be merged, ``SettingError`` where slices do not fit the method."""
    known: dict[str, Stored] = {}

    def stored(name: str) -> Stored:
        if name not in known:
            known[name] = Stored(locate(name), name)
            if "quantization_config" in config_of(known[name]) or (known[name].directory / "modicum.json").is_file():
                raise ModelError(
                    f"{name}: must be stored dense to be merged, holds codes. Start from the original, or make it dense: modicum densify."
                )
        return known[name]

    first = stored(plan.base)

    def one(entry: Entry) -> Source:
        found = source(entry.model, first)
        if isinstance(found, Stored):
            found = stored(entry.model)
        return found if entry.minus is None else Moved(first, found, stored(entry.minus), f"{entry.model} minus {entry.minus}")

    if plan.experts:
        experts = tuple(one(Entry(each.model)) for each in plan.experts)
        require_one(first, experts)
        made = mixture(first, experts, plan)
        return Inputs(made, (made,), (1.0,), tuple(known.values()), experts)
    if not plan.slices:
        models = tuple(one(entry) for entry in plan.models)
        weights = tuple(method.weight if entry.weight is None else entry.weight for entry in plan.models)
        return Inputs(first, models, weights, tuple(known.values()), models)
    columns, base = _columns(plan, method)
    layered = [Layered(_parts(column, one), "layers of " + ", ".join(dict.fromkeys(entry.model for entry in column))) for column in columns]
    weights = tuple(method.weight if column[0].weight is None else column[0].weight for column in columns)
    for column in columns:
        if len({repr(entry.weight) for entry in column}) > 1:
            raise SettingError("plan: a model's weight must be one in all slices. Write it as a list over the layers.")
    layout = layered[0] if base is None else Layered(_parts(base, one), f"layers of {plan.base}")
    return Inputs(layout, tuple(layered), weights, tuple(known.values()), tuple(known.values()))


def _columns(plan: Plan, method: Merge) -> tuple[list[list[Entry]], list[Entry] | None]:
    """Each model's entries over the slices, and the base's among them."""
    counts = {len(part) for part in plan.slices}
    if len(counts) != 1:
        raise SettingError(f"plan: slices must all have equally many sources, have {sorted(counts)}.")
    columns = [[part[place] for part in plan.slices] for place in range(counts.pop())]
    base = next((column for column in columns if all(entry.model == plan.base for entry in column)), None)
    if base is not None and len(columns) > 1 and method.reads_base:
        columns.remove(base)
    elif method.reads_base:
        raise SettingError(f"plan: {method} reads a base, so that {plan.base} must be a source of every slice.")
    return columns, base


def _parts(column: Sequence[Entry], one: Any) -> list[tuple[Source, int]]:
    met: dict[str, Source] = {}
    found = []
    for entry in column:
        mine = met.setdefault(f"{entry.model} {entry.minus}", one(entry))
        assert entry.layers is not None
        found += [(mine, layer) for layer in range(*entry.layers)]
    return found


def plan_of(base: str | Path, models: Sequence[Any], method: str, weights: Sequence[float] | None, dtype: str | None, seed: int) -> Plan:
    """A plan of what a command says. Raises ``SettingError``."""
    for each in models:
        if not isinstance(each, str | Path):
            raise SettingError(f"models: must be folders where the base is one, one is a {type(each).__name__}.")
    shares = [None] * len(models) if weights is None else [float(weight) for weight in weights]
    entries = tuple(Entry(str(model), share) for model, share in zip(models, shares))
    return Plan(str(base), method, entries, (), dtype, seed)


def weighed(inputs: Inputs, weights: Sequence[Weight], method: Merge) -> Any:
    """Weights by a tensor's name. Raises ``SettingError`` where the method cannot have them somewhere."""
    layers = inputs.layers
    if all(isinstance(weight, float) for weight in weights):
        fixed = tuple(float(weight) for weight in weights if isinstance(weight, float))
        method.check(fixed)
        return lambda name: fixed
    known = {name: tuple(at(weight, name, layers) for weight in weights) for name in inputs.base.names()}
    for each in set(known.values()):
        method.check(each)
    return known.__getitem__
