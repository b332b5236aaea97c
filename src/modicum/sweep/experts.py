"""Stacked experts: which inputs each slice of a three-axis parameter meets, seen at the matrix product itself.

Hooks cannot see inside a module that multiplies slices of its own parameter. So the module runs under a mode that watches matrix products
and recognises the slice by its memory: any layout, routed by the model itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_LINEAR = {torch.nn.functional.linear}
_PRODUCTS = {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.Tensor.mm, torch.bmm, torch.Tensor.bmm}


@dataclass(frozen=True)
class Use:
    """One product of inputs (tokens, columns) with expert ``expert`` of the stack ``attribute``; ``part`` indexes a batched output."""

    attribute: str
    expert: int
    transposed: bool
    inputs: torch.Tensor
    output: torch.Tensor
    part: int | None = None


class Watch(TorchFunctionMode):
    """Reports every matrix product with a slice of the given stacks."""

    def __init__(self, stacks: dict[str, torch.Tensor], report: Callable[[Use], None]):
        super().__init__()
        self.stacks, self.report = {stack.untyped_storage().data_ptr(): (name, stack) for name, stack in stacks.items()}, report

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if (func in _LINEAR or func in _PRODUCTS) and len(args) >= 2:
            weight = args[1]
            found = self.stacks.get(weight.untyped_storage().data_ptr()) if isinstance(weight, torch.Tensor) else None
            if found is not None:
                self._recognise(*found, weight, args[0], output, linear=func in _LINEAR)
        return output

    def _recognise(
        self, name: str, stack: torch.Tensor, weight: torch.Tensor, inputs: torch.Tensor, output: torch.Tensor, *, linear: bool
    ) -> None:
        natural = weight.stride(-1) == stack.stride(2) and weight.stride(-2) == stack.stride(1)
        transposed = natural != linear
        if weight.ndim == 2:
            expert = (weight.storage_offset() - stack.storage_offset()) // stack.stride(0)
            self.report(Use(name, int(expert), transposed, inputs.reshape(-1, inputs.shape[-1]), output))
        elif weight.ndim == 3 and inputs.ndim == 3 and len(weight) == len(stack) == len(inputs):
            for expert in range(len(stack)):
                self.report(Use(name, expert, transposed, inputs[expert], output, expert))
