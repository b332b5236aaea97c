"""What forwards keep on their modules: attributes and buffers that they write, of which each suspended forward has its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# What every module has, and nobody's forward writes; buffers are looked at one by one.
_OWN = frozenset(vars(nn.Module())) | {"forward"}
_MISSING = object()

Kept = dict[str, dict[str, Any]]
"""By the name of a part, what it keeps beside its weights, by key."""


@dataclass(frozen=True)
class _Tensor:
    """A tensor and what it held: others may hold the same one, so it is written to where its values changed."""

    itself: torch.Tensor
    values: torch.Tensor


class Memory:
    """What forwards keep on their modules, of which each suspended one has its own: ``carried`` are keys by a part's name.

    Of tensors that stand there before any forward all have the same one, so its values are kept; one that a forward has made is its own.
    """

    def __init__(self, modules: Mapping[str, nn.Module], carried: Mapping[str, frozenset[str]]):
        self._places = [(modules[name], key) for name, keys in sorted(carried.items()) if name in modules for key in sorted(keys)]
        self._shared = [value for value in self._held() if isinstance(value, torch.Tensor)]

    def _held(self) -> list[Any]:
        return [_home(part, key).get(key, _MISSING) for part, key in self._places]

    def taken(self) -> list[Any]:
        """What stands there now."""
        return [value if _is_own(value, self._shared) else _copied(value) for value in self._held()]

    def put(self, values: list[Any]) -> None:
        """Put back what was taken."""
        for (part, key), value in zip(self._places, values):
            _put(_home(part, key), key, value)


def _is_own(value: Any, shared: list[torch.Tensor]) -> bool:
    return isinstance(value, torch.Tensor) and not any(value is each for each in shared)


def _home(part: nn.Module, key: str) -> dict[str, Any]:
    return part._buffers if key in part._buffers else vars(part)


def _put(home: dict[str, Any], key: str, value: Any) -> None:
    held = home.get(key, _MISSING)
    if value is _MISSING:
        home.pop(key, None)
    elif isinstance(value, _Tensor):
        home[key] = value.itself
        if not _equal(value.itself, value.values):
            with torch.inference_mode(value.itself.is_inference()), torch.no_grad():
                value.itself.copy_(value.values)
    elif type(value) is dict and type(held) is dict:  # others may hold the same one
        held.clear()
        held.update(value)
    elif type(value) is list and type(held) is list:
        held[:] = value
    else:
        home[key] = value.copy() if type(value) in (dict, list) else value


def kept(module: nn.Module) -> Kept:
    """What every part of a module keeps beside its weights, as it is now; buffers too."""
    return {name: {key: _copied(value) for key, value in _entries(part)} for name, part in module.named_modules()}


def _entries(part: nn.Module) -> list[tuple[str, Any]]:
    buffers = [(key, value) for key, value in part._buffers.items() if value is not None]
    return [(key, value) for key, value in vars(part).items() if key not in _OWN] + buffers


def written(before: Kept, after: Kept) -> dict[str, frozenset[str]]:
    """Which keys differ between two answers of ``kept``, by the part's name."""
    found = {}
    for name, values in after.items():
        had = before.get(name, {})
        if changed := {key for key in values.keys() | had.keys() if not _same(had.get(key, _MISSING), values.get(key, _MISSING))}:
            found[name] = frozenset(changed)
    return found


def hooks(module: nn.Module) -> int:
    """How many hooks see the forwards of a module's parts."""
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def restore(module: nn.Module, before: Kept, *, added: bool = True) -> None:
    """Put back what forwards have written since ``before`` was taken; not what they have ``added``, where that must stay."""
    parts = dict(module.named_modules())
    for name, keys in written(before, kept(module)).items():
        for key in sorted(keys) if name in before else ():
            if key not in before[name] and not added:
                continue
            _put(_home(parts[name], key), key, before[name].get(key, _MISSING))


def _copied(value: Any) -> Any:
    if type(value) is torch.Tensor and value.device.type != "meta" and value.layout == torch.strided:
        return _Tensor(value, value.detach().clone())
    return value.copy() if type(value) in (dict, list) else value


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, _Tensor):
        return one.itself is other.itself and _equal(one.values, other.values)
    if type(one) is dict:
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if type(one) is list:
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool | int | float | str) and one == other


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether values are the same; NaN is like NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or (one.is_floating_point() and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True))
