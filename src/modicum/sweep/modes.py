"""State that forwards share without saying so: torch's modes of a thread, what they keep on their modules, fast paths and compilers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_DEVICES = ("cpu", "cuda")
# What every module has, and nobody's forward writes.
_OWN = frozenset(vars(nn.Module())) | {"forward"}
_MISSING = object()


@dataclass(frozen=True)
class Modes:
    """torch's modes of this thread, as one forward has set them."""

    grad: bool
    inference: bool
    default: torch.dtype
    cache: bool
    autocast: tuple[tuple[str, bool, torch.dtype], ...]

    @classmethod
    def now(cls) -> Modes:
        """The modes as they are."""
        devices = _DEVICES if torch.cuda.is_available() else _DEVICES[:1]
        casts = tuple((device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in devices)
        return cls(
            torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(), torch.is_autocast_cache_enabled(), casts
        )  # fmt: skip

    def set(self) -> None:
        """Make them so; inference mode is its own guard's."""
        torch.set_grad_enabled(self.grad)
        torch.set_default_dtype(self.default)
        torch.set_autocast_cache_enabled(self.cache)
        for device, enabled, dtype in self.autocast:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """They hold inside; afterwards what held before."""
        before = Modes.now()
        with torch.inference_mode(self.inference) if self.inference != before.inference else nullcontext():
            self.set()
            try:
                yield
            finally:
                before.set()


class Memory:
    """What forwards keep on their modules, of which each suspended one has its own: ``places`` are modules with an attribute each."""

    def __init__(self, modules: Mapping[str, nn.Module], carried: Mapping[str, frozenset[str]]):
        self._places = [(modules[name], key) for name, keys in sorted(carried.items()) if name in modules for key in sorted(keys)]

    def taken(self) -> list[Any]:
        """What stands there now."""
        return [_copied(vars(part).get(key, _MISSING)) for part, key in self._places]

    def put(self, values: list[Any]) -> None:
        """Put back what was taken."""
        for (part, key), value in zip(self._places, values):
            held = vars(part).get(key, _MISSING)
            if value is _MISSING:
                vars(part).pop(key, None)
            elif type(value) is dict and type(held) is dict:  # others may hold the same one
                held.clear()
                held.update(value)
            elif type(value) is list and type(held) is list:
                held[:] = value
            else:
                vars(part)[key] = _copied(value)


def kept(module: nn.Module) -> dict[str, dict[str, Any]]:
    """What every part of a module keeps beside its weights, by name; lists and dicts as they are now."""
    return {name: {key: _copied(value) for key, value in vars(part).items() if key not in _OWN} for name, part in module.named_modules()}


def written(before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]) -> dict[str, frozenset[str]]:
    """Which attributes differ between two answers of ``kept``, by the part's name."""
    found = {}
    for name, values in after.items():
        had = before.get(name, {})
        if changed := {key for key in values.keys() | had.keys() if not _same(had.get(key, _MISSING), values.get(key, _MISSING))}:
            found[name] = frozenset(changed)
    return found


def _copied(value: Any) -> Any:
    return value.copy() if type(value) in (dict, list) else value


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if type(one) is dict:
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if type(one) is list:
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool | int | float | str) and one == other


class _Plain:
    """How many forwards run that want torch's own short cuts left out, and what they stood at before the first."""

    count = 0
    fast = True


@contextmanager
def uncut(module: nn.Module, *, restored: bool = True) -> Iterator[None]:
    """Every layer is really called inside: no compiler's code for the module, no fast path that multiplies weights without their layers.

    What forwards keep on their parts is afterwards what it was before, unless not ``restored``: a loader may do its last steps on first use.
    """
    before = kept(module) if restored else {}
    compiled = {part: vars(part)["_compiled_call_impl"] for part in module.modules() if vars(part).get("_compiled_call_impl") is not None}
    wrapped = {part: vars(part)["forward"] for part in module.modules() if "_orig_mod" in part._modules and "forward" in vars(part)}
    if _Plain.count == 0:
        _Plain.fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
    _Plain.count += 1
    for part in compiled:
        vars(part)["_compiled_call_impl"] = None
    for part in wrapped:
        vars(part)["forward"] = part._modules["_orig_mod"]
    try:
        yield
    finally:
        for part, implementation in compiled.items():
            vars(part)["_compiled_call_impl"] = implementation
        for part, forward in wrapped.items():
            vars(part)["forward"] = forward
        _Plain.count -= 1
        if _Plain.count == 0:
            torch.backends.mha.set_fastpath_enabled(_Plain.fast)
        if restored:
            _restore(module, before)


def _restore(module: nn.Module, before: Mapping[str, Mapping[str, Any]]) -> None:
    parts = dict(module.named_modules())
    changed = {name: keys for name, keys in written(before, kept(module)).items() if name in before}
    Memory(parts, changed).put([before[name].get(key, _MISSING) for name in sorted(changed) for key in sorted(changed[name])])
