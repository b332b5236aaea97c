"""What tells one function from another in every process: its code, and all the values that it computes with."""

from __future__ import annotations

import dis
import enum
import hashlib
import types
from collections.abc import Sequence
from dataclasses import is_dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from modicum.core.tensorformat import raw_bytes

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), torch.dtype, torch.device, range)


def identity(value: Any) -> str:
    """A digest (hex) of values; of a function: of its code with that of nested ones, its defaults, what it closes over and globals of its own module.

    Of a ``partial`` also its arguments, of a method or a callable object what its class computes and what it holds; tensors and modules count by
    their values, data classes by their fields. Of other objects only the type is told. It is the same in each process, and another one where a
    function changed what it holds.
    """
    whose = value
    while isinstance(whose, partial):
        whose = whose.func
    return _Teller(getattr(whose, "__module__", None)).told(value).hex()


class _Teller:
    """Digests of values, those of objects that hold themselves included; ``home`` is the module whose globals are looked up."""

    def __init__(self, home: str | None) -> None:
        self._home = home
        self._known: dict[int, tuple[Any, bytes]] = {}  # the object too, so that no other one takes its address

    def told(self, value: Any) -> bytes:
        if isinstance(value, _PLAIN):
            return _digest(type(value).__qualname__, repr(value))
        if id(value) not in self._known:
            self._known[id(value)] = value, _digest("met on the way", type(value).__qualname__)
            self._known[id(value)] = value, _digest(type(value).__qualname__, *self._parts(value))
        return self._known[id(value)][1]

    def _parts(self, value: Any) -> Sequence[str | bytes | memoryview]:
        if isinstance(value, torch.Tensor | np.ndarray | np.generic):
            return _entries(value)
        if isinstance(value, tuple | list):
            return [self.told(each) for each in value]
        if isinstance(value, set | frozenset):
            return sorted(map(self.told, value))
        if isinstance(value, dict | types.MappingProxyType):
            return sorted(self.told(key) + self.told(each) for key, each in value.items())
        if isinstance(value, types.CodeType):
            return [value.co_name, value.co_code, self.told(value.co_names), self.told(value.co_consts)]
        if isinstance(value, types.FunctionType):
            return [value.__qualname__, *map(self.told, (value.__code__, value.__defaults__, value.__kwdefaults__, *self._met(value)))]
        if isinstance(value, partial):
            return [self.told(each) for each in (value.func, value.args, value.keywords)]
        if isinstance(value, types.MethodType):
            return [self.told(value.__func__), self.told(value.__self__)]
        if isinstance(value, property):
            return [self.told(value.fget)]
        if isinstance(value, staticmethod | classmethod):
            return [self.told(value.__func__)]
        if isinstance(value, enum.Enum):
            return [value.name]
        if isinstance(value, type):
            return [value.__module__, value.__qualname__, *([self._class(value)] if value.__module__ == self._home else [])]
        if isinstance(value, types.ModuleType | types.BuiltinFunctionType):
            return [value.__name__]
        return [self._class(type(value)), self.told(_held(value))] if callable(value) or is_dataclass(value) else [type(value).__module__]

    def _met(self, function: types.FunctionType) -> list[Any]:
        """What a function closes over, and what it reads of the globals of its home."""
        cells = [_content(cell) for cell in function.__closure__ or ()]
        if function.__module__ != self._home:
            return cells
        return [*cells, {name: function.__globals__[name] for name in _globals(function.__code__) if name in function.__globals__}]

    def _class(self, cls: type) -> bytes:
        """What a class computes, and its plain values."""
        held = [each for each in cls.__mro__ if each not in (object, nn.Module)]
        said = [
            {name: value for name, value in vars(each).items() if callable(value) or not name.startswith("__")}
            for each in held if each.__module__ != "builtins"
        ]  # fmt: skip
        return self.told([each.__qualname__ for each in held]) + self.told(said)


def _held(value: Any) -> Any:
    """What an object holds; of a module without what torch keeps beside numbers and parts."""
    if isinstance(value, nn.Module):
        own = {name: each for name, each in vars(value).items() if name not in _TORCH}
        return [own, value._parameters, value._buffers, value._modules]
    try:
        return object.__getstate__(value)
    except TypeError:  # of what C code holds
        return None


_TORCH = frozenset(vars(nn.Module()))


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was put there yet
        return None


def _globals(code: types.CodeType) -> set[str]:
    """Names that a function and those within it read of their module."""
    found = {each.argval for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL"}
    return found.union(*(_globals(each) for each in code.co_consts if isinstance(each, types.CodeType)))


def _entries(value: Any) -> list[str | bytes | memoryview]:
    said: list[str | bytes | memoryview] = [str(value.dtype), str(tuple(value.shape))]
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_meta or value.is_quantized:
            return said
        return [*said, raw_bytes(value.detach().cpu().resolve_conj().resolve_neg().contiguous())]
    return said if value.dtype.hasobject else [*said, value.tobytes()]


def _digest(*parts: str | bytes | memoryview) -> bytes:
    """Of parts, each with its length, so that no two lists of them run together."""
    found = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        found.update(len(raw).to_bytes(8, "little"))
        found.update(raw)
    return found.digest()
