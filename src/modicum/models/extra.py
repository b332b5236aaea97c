"""Extra state: what modules keep beside weights and buffers and hand out themselves, as plain values that a file can hold safely."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from modicum.core.errors import ModelError, quoted

# Containers within containers beyond this are no state that anybody wrote.
_DEEPEST = 50
_WRITE: dict[type, Callable[[Any], Any]] = {type(None): lambda _: None, bool: bool, int: str, float: float.hex, str: str}
_READ: dict[str, Callable[[Any], Any]] = {
    "NoneType": lambda _: None, "bool": bool, "int": int, "float": float.fromhex, "str": str,
}  # fmt: skip


def has_extra_state(module: nn.Module) -> list[str]:
    """Names of the parts with extra state."""
    return [name for name, part in module.named_modules() if type(part).get_extra_state is not nn.Module.get_extra_state]


def extra_states(module: nn.Module) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, str]]:
    """Of every part with extra state its description, made of lists and texts; the tensors in it by names of their own; and of those whose
    state cannot be written why not.
    """
    described: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    unwritten: dict[str, str] = {}
    for name in has_extra_state(module):
        part, mine = module.get_submodule(name), dict[str, torch.Tensor]()
        try:
            if type(part).set_extra_state is nn.Module.set_extra_state:
                raise TypeError("there is no set_extra_state to give it back")
            described[name] = _described(part.get_extra_state(), f"{name}._extra_state" if name else "_extra_state", mine)
        except Exception as error:  # whatever a module's own method raises
            unwritten[name] = quoted(error)
            continue
        tensors |= mine
    return described, tensors, unwritten


def _described(value: Any, name: str, tensors: dict[str, torch.Tensor], depth: int = 0) -> list[Any]:
    if depth > _DEEPEST:
        raise TypeError("it is nested too deep")
    inner = lambda item: _described(item, name, tensors, depth + 1)
    if isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type != "meta":
        place = f"{name}:{len(tensors)}"
        tensors[place] = value.detach().to("cpu").contiguous()
        return ["tensor", place]
    if type(value) in (list, tuple):
        return [type(value).__name__, [inner(item) for item in value]]
    if isinstance(value, Mapping) and type(value).__module__ in ("builtins", "collections"):
        return ["dict", [[inner(key), inner(item)] for key, item in value.items()]]
    if type(value) not in _WRITE:
        raise TypeError(f"it holds a {type(value).__name__}")
    return [type(value).__name__, _WRITE[type(value)](value)]


def give_back(modules: Mapping[str, nn.Module], described: Any, read: Callable[[str], torch.Tensor], who: object) -> None:
    """Hand every part its extra state. Raises ``ModelError`` for a description that none of ours is, and for parts that take none."""
    for name, state in _items(described, who):
        part = modules.get(name)
        if part is None or type(part).set_extra_state is nn.Module.set_extra_state:
            raise ModelError(
                f"{who}: {name or 'the module'} must take extra state (set_extra_state), does not. Load into the module it came from."
            )
        try:
            value = _value(state, read)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise ModelError(
                f"{who}: extra state must be as it was written, is malformed ({quoted(error)}). Write the files anew."
            ) from None
        try:
            part.set_extra_state(value)
        except Exception as error:  # whatever a module's own method raises
            raise ModelError(f"{who}: {name or 'the module'} does not take its extra state ({quoted(error)}).") from None


def _items(described: Any, who: object) -> Iterator[tuple[str, Any]]:
    if not isinstance(described, dict):
        raise ModelError(f"{who}: extra state must be listed by module, is not. Write the files anew.")
    yield from described.items()


def _value(state: Any, read: Callable[[str], torch.Tensor], depth: int = 0) -> Any:
    kind, held = state
    if depth > _DEEPEST:
        raise ValueError("nested too deep")
    if kind == "tensor":
        return read(held)
    if kind in ("list", "tuple"):
        items = [_value(item, read, depth + 1) for item in held]
        return items if kind == "list" else tuple(items)
    if kind == "dict":
        return {_value(key, read, depth + 1): _value(item, read, depth + 1) for key, item in held}
    return _READ[kind](held)
