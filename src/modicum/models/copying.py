"""Copies of a module that share nothing they could disturb, also of one that holds what Python cannot copy."""

from __future__ import annotations

import copy
import threading
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

from modicum.core.errors import ModelError

_TREE = ("_parameters", "_buffers", "_modules")
_LOCKS = (type(threading.Lock()), threading.Semaphore)
# In the memory of a copy with tensors of its own: locks are locks again.
_APART = "apart"


def copied(module: nn.Module, *, apart: bool = False, known: dict[int, Any] | None = None) -> nn.Module:
    """The module with parts of its own, and the same tensors; ``apart``, tensors of its own too; ``known`` gives others for them, by identity.

    What cannot be copied (an open file, a tensor with a graph) is shared. So is a lock with a copy ``apart``; in others it lets everybody in, since
    forwards of one thread stand still inside it and would wait for each other for ever. Functions that were made over the original's modules are made
    over the copy's. Raises ``ModelError`` where neither is possible.
    """
    known = known if known is not None else ({} if apart else {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})
    given: dict[Any, Any] = known | {_APART: True} if apart else known
    memo = dict(given)
    try:
        made = copy.deepcopy(module, memo)
    except Exception:  # whatever an object raises that is not made to be copied
        memo = {name: item if apart or not isinstance(item, _LOCKS) else _Open(item) for name, item in _shared(module).items()} | given
        try:
            made = copy.deepcopy(module, memo)
        except Exception as error:
            raise ModelError(f"{type(module).__name__}: must be a module that can be copied, is not ({str(error)[:160]}).") from None
    _rebind(module, made, memo)
    return made


class _Open:
    """Stands for a ``lock`` in modules of our own."""

    def __init__(self, lock: Any):
        self.lock = lock

    def __deepcopy__(self, memo: dict[Any, Any]) -> Any:
        return self.lock if _APART in memo else self

    def acquire(self, *args: Any, **kwargs: Any) -> bool:
        return True

    def release(self, *args: Any) -> None:
        """Nothing is held."""

    def locked(self) -> bool:
        return False

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *error: object) -> None:
        self.release()


def bare(module: nn.Module) -> nn.Module:
    """The module beneath ``torch.compile``: a compiled one cannot stand still in the middle of its forward."""
    while isinstance(beneath := getattr(module, "_orig_mod", None), nn.Module):
        module = beneath
    return module


def compiled(module: nn.Module) -> bool:
    """Whether ``torch.compile`` has a hand in the module or a part of it."""
    return any("_orig_mod" in part._modules or getattr(part, "_compiled_call_impl", None) is not None for part in module.modules())


def uncompile(module: nn.Module) -> nn.Module:
    """A copy made plain in all its parts: each is called as it was written."""
    module = bare(module)
    for part in list(module.modules()):
        part._compiled_call_impl = None
        for name, child in part._modules.items():
            if child is not None:
                part._modules[name] = bare(child)
    return module


def _shared(module: nn.Module) -> dict[int, Any]:
    """What in the module's attributes cannot be copied, by identity. Raises ``ModelError`` for one that refers to the module's parts."""
    parts = list(module.modules())
    tree = {id(part): part for part in parts} | {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    found: dict[int, Any] = {}
    for part in parts:
        for name, value in vars(part).items():
            if name not in _TREE:
                for item in _stubborn(value, tree):
                    if any(id(each) in tree for each in _reached(item)):
                        raise ModelError(
                            f"{type(part).__name__}: {name} cannot be copied and refers to parts of the module. Set it to None for the call."
                        )
                    found[id(item)] = item
    return found


def _stubborn(value: Any, tree: dict[int, Any]) -> Iterator[Any]:
    """The smallest parts of a value that cannot be copied."""
    try:
        copy.deepcopy(value, dict(tree))
    except Exception:
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else None
        if items is None:
            yield value
        for item in items or ():
            yield from _stubborn(item, tree)


def _reached(value: Any, depth: int = 6) -> Iterator[Any]:
    """An object and what it refers to, a few steps deep."""
    yield value
    if depth and not isinstance(value, nn.Module | type | types.ModuleType | str | bytes):
        held: list[Any] = list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list | tuple | set) else []
        held += vars(value).values() if hasattr(value, "__dict__") else []
        held += [cell for cell in map(_content, getattr(value, "__closure__", None) or ()) if cell is not None]
        held += [value.__self__] if isinstance(value, types.MethodType) else []
        held += value.gi_frame.f_locals.values() if isinstance(value, types.GeneratorType) and value.gi_frame is not None else []
        for item in held:
            yield from _reached(item, depth - 1)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _rebind(module: nn.Module, made: nn.Module, memo: dict[int, Any]) -> None:
    """Functions among the attributes that close over parts of the original, made anew over the copy's."""
    tree = {id(part) for part in module.modules()}
    for part in made.modules():
        for name, value in list(vars(part).items()):
            if name not in _TREE:
                vars(part)[name] = _over(value, tree, memo)


def _over(value: Any, tree: set[int], memo: dict[int, Any]) -> Any:
    if isinstance(value, types.FunctionType):
        value = getattr(value, "_torchdynamo_orig_callable", value)  # what was compiled, not the compiler's code for it
    if isinstance(value, types.MethodType) and id(value.__self__) in tree:
        return copy.deepcopy(value, memo)
    if isinstance(value, types.FunctionType):
        return _function_over(value, tree, memo)
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = _over(item, tree, memo)
    elif isinstance(value, list):
        value[:] = [_over(item, tree, memo) for item in value]
    return value


def _function_over(function: types.FunctionType, tree: set[int], memo: dict[int, Any]) -> types.FunctionType:
    for name in function.__code__.co_names:
        if id(function.__globals__.get(name)) in tree:
            raise ModelError(f"{function.__qualname__}: must get its module as an argument, uses the global {name}. Make it a method.")
    contents = [_content(cell) for cell in function.__closure__ or ()]
    mine = [any(id(item) in tree for item in _reached(content)) for content in contents]
    if not any(mine):
        return function
    cells = tuple(
        types.CellType(copy.deepcopy(content, memo)) if is_mine else cell
        for cell, content, is_mine in zip(function.__closure__ or (), contents, mine)
    )
    other = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    other.__kwdefaults__, other.__qualname__ = function.__kwdefaults__, function.__qualname__
    other.__dict__.update(function.__dict__)
    return other
