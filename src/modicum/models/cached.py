"""Attentions that keep keys and values for later tokens, and what happens to these before they are kept."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
# What attentions call the cache that they are given, in Transformers' releases one after the other.
_NAMES = ("cache", "past_key_values", "past_key_value")
PROJECTIONS = ("k_proj", "v_proj", "qkv_proj", "kv_b_proj")  # those whose scales runtimes look for
Steps = tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]


def attentions(module: nn.Module) -> dict[str, nn.Module]:
    """Attentions that keep keys and values, by name, whose scales compressed-tensors and vLLM have names for."""
    return {
        name: part
        for name, part in module.named_modules()
        if "attention" in type(part).__name__.lower() and any(hasattr(part, each) for each in PROJECTIONS) and _name(part)
    }


def _name(attention: nn.Module) -> str:
    known = inspect.signature(attention.forward).parameters
    return next((name for name in _NAMES if name in known), "")


def round_cache(module: nn.Module, scales: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Let attentions round keys and values to 8-bit floats, by scales (1,) of each that become their buffers ``k_scale`` and ``v_scale``."""
    for name, pair in scales.items():
        attention = module.get_submodule(name)
        for part, scale in zip("kv", pair):
            attention.register_buffer(f"{part}_scale", scale)
        attention.register_forward_pre_hook(partial(_rounds, _name(attention)), with_kwargs=True)


def keep_cache(module: nn.Module) -> None:
    """Let attentions keep keys and values as they come, as before ``round_cache``."""
    for name in rounded_scales(module):
        attention = module.get_submodule(name)
        for part in "kv":
            delattr(attention, f"{part}_scale")
        for key, hook in list(attention._forward_pre_hooks.items()):
            if isinstance(hook, partial) and hook.func is _rounds:
                del attention._forward_pre_hooks[key]
                attention._forward_pre_hooks_with_kwargs.pop(key, None)


def rounded_scales(module: nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The scales by which attentions of a module round, as ``round_cache`` gave them."""
    return {
        name: (part.get_buffer("k_scale"), part.get_buffer("v_scale"))
        for name, part in attentions(module).items()
        if "k_scale" in part._buffers
    }


def rounded(scale: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A value as 8-bit floats under a scale hold it; what is beyond the largest is cut off."""
    return (value / scale).clamp(-LARGEST, LARGEST).to(FLOAT8).to(value.dtype) * scale.to(value.dtype)


@contextmanager
def watched(module: nn.Module, see: Callable[[str, int, torch.Tensor], None]) -> Iterator[None]:
    """Inside, ``see(attention, 0 or 1, tensor)`` is shown all keys and values that are kept."""

    def look(name: str, place: int, value: torch.Tensor) -> torch.Tensor:
        see(name, place, value)
        return value

    def hook(name: str, given: str, attention: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, _through((partial(look, name, 0), partial(look, name, 1)), given, kwargs)

    hooks = [
        part.register_forward_pre_hook(partial(hook, name, _name(part)), with_kwargs=True) for name, part in attentions(module).items()
    ]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def _rounds(given: str, attention: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    keys, values = (partial(rounded, attention.get_buffer(f"{part}_scale")) for part in "kv")
    return args, _through((keys, values), given, kwargs)


def _through(steps: Steps, given: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    return kwargs | {given: _Kept(steps, kwargs.get(given))}


class _Kept:
    """Stands in a cache's place for one call of an attention: what it is given goes through ``steps``, then to the cache there is."""

    def __init__(self, steps: Steps, inner: Any):
        self._steps, self._inner = steps, inner

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._steps[0](keys), self._steps[1](values)
        return (keys, values) if self._inner is None else self._inner.update(keys, values, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_inner"], name)
