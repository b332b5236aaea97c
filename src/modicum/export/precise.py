"""A model in float32, where a difference of outputs is one of shapes and not of rounding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from modicum.data.splits import Batch, call
from modicum.sweep.outputs import Outputs

_LOW = (torch.bfloat16, torch.float16)


@torch.no_grad()
def precise_output(module: nn.Module, batch: Batch) -> tuple[torch.Tensor, ...]:
    """The tensors that a module's output is judged by, computed in float32."""
    with precisely(module):
        return tuple(value.double() for _, value in Outputs().of(call(module, batch)))


def relative_gap(output: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> float:
    """Norm of the difference relative to that of the reference, the largest of all tensors; what is infinite in both does not differ."""
    gaps = torch.stack([torch.where(ours == theirs, 0.0, ours - theirs).norm() for ours, theirs in zip(output, reference)])
    norms = torch.stack([torch.where(theirs.isinf(), 0.0, theirs).norm() for theirs in reference])
    return float((gaps / norms.clamp_min(1e-30)).max())


@contextmanager
def precisely(module: nn.Module) -> Iterator[None]:
    """Inside, every module works in float32: its half-precision weights and inputs are copied as it is called, and given back after."""
    held: dict[nn.Module, tuple[dict, dict]] = {}

    def enter(owner: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        held[owner] = dict(owner._parameters), dict(owner._buffers)
        owner._parameters.update(
            {name: nn.Parameter(_raised(value), requires_grad=False) for name, value in owner._parameters.items() if _is_low(value)}
        )
        owner._buffers.update({name: value.float() for name, value in owner._buffers.items() if value is not None and _is_low(value)})
        return tuple(map(_raised, args)), {name: _raised(value) for name, value in kwargs.items()}

    def leave(owner: nn.Module, *_: Any) -> None:
        parameters, buffers = held.pop(owner)
        owner._parameters.update(parameters)
        owner._buffers.update(buffers)

    owners = [owner for owner in module.modules() if any(map(_is_low, (*owner._parameters.values(), *owner._buffers.values())))]
    # A table of embeddings is large, and what is looked up in it is exact as it is.
    tables = [owner for owner in owners if isinstance(owner, nn.Embedding)]
    handles = [owner.register_forward_hook(lambda *parts: _raised(parts[-1])) for owner in tables]
    handles += [owner.register_forward_pre_hook(enter, with_kwargs=True) for owner in owners if owner not in tables]
    handles += [owner.register_forward_hook(leave) for owner in owners if owner not in tables]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for owner in list(held):
            leave(owner)


def _is_low(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in _LOW


def _raised(value: Any) -> Any:
    return value.float() if _is_low(value) else value
