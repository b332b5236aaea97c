"""Stacked experts: which inputs each slice of a three-axis parameter meets, seen at the matrix product itself.

Hooks cannot see inside a module that multiplies slices of its own parameter. So the module runs under a mode that watches matrix products
and recognises the slice by its memory: any layout, routed by the model itself. Where an expert's outputs go, and with what weight, is seen in the
same way: the module runs again with codes in place of the products, and its own output tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from modicum.core.unit import Routed

_LINEAR = {torch.nn.functional.linear}
_PRODUCTS = {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.Tensor.mm, torch.bmm, torch.Tensor.bmm}

# What stands for one in a code: a power of two, above which biases and what else a module adds round nothing away.
_ONE = 1024.0
# Roundings by which a module's output may differ from what its routing explains.
_ROUNDING = 8.0


@dataclass(frozen=True)
class Use:
    """One product of inputs (tokens, columns) with expert ``expert`` of the stack ``attribute``; ``part`` indexes a batched output."""

    attribute: str
    expert: int
    transposed: bool
    inputs: torch.Tensor
    output: torch.Tensor
    part: int | None = None

    @property
    def rows(self) -> torch.Tensor:
        """The expert's own output (tokens, rows), as a view."""
        own = self.output if self.part is None else self.output[self.part]
        return own.reshape(-1, own.shape[-1])


class Watch(TorchFunctionMode):
    """Reports every matrix product with a slice of the given stacks; a ``hollow`` one is not taken: its output is zeros, for ``report`` to fill."""

    def __init__(self, stacks: Mapping[str, torch.Tensor], report: Callable[[Use], None], *, hollow: bool = False):
        super().__init__()
        self.stacks, self.report = {stack.untyped_storage().data_ptr(): (name, stack) for name, stack in stacks.items()}, report
        self.hollow = hollow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found, linear = None, func in _LINEAR
        if (linear or func in _PRODUCTS) and len(args) >= 2:
            weight = args[1]
            found = self.stacks.get(weight.untyped_storage().data_ptr()) if isinstance(weight, torch.Tensor) else None
        if found is None:
            return func(*args, **(kwargs or {}))
        if self.hollow:
            output = args[0].new_zeros(*args[0].shape[:-1], weight.shape[-2 if linear else -1])
        else:
            output = func(*args, **(kwargs or {}))
        self._recognise(*found, weight, args[0], output, linear=linear)
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


def routed(forward: Callable[[], Any], stacks: Mapping[str, torch.Tensor], last: str) -> tuple[dict[int, Routed], int] | None:
    """What each expert's last product, with the stack ``last``, met in one call of a module, and the rows of the module's output.

    The module's output is a sum of its experts' outputs, each row with a weight and in a place that its router chose. Both are read off it: the
    module runs again while every product answers zeros, and once more, or a few times, while each row of a last product answers a one and its
    own number in binary, in columns that no other expert uses. Any router and dtype will do: the digits are told from zero alone, and weights come
    out as the module's output rounds them.

    *Needs and cost:* the module's forward once, and two or more times without its products. None where the output is not such a sum.
    """
    uses: dict[int, list[Use]] = {}

    def keep(use: Use) -> None:
        if use.attribute == last:
            uses.setdefault(use.expert, []).append(use)

    with Watch(stacks, keep):
        output = _rows(forward())
    products = {expert: torch.cat([use.rows for use in found]) for expert, found in uses.items()}
    if output is None or not products or any(rows.shape[1] != output.shape[1] for rows in products.values()):
        return None
    with Watch(stacks, lambda use: None, hollow=True):
        rest = _rows(forward())
    assert rest is not None
    codes = _coded(forward, stacks, last, rest, {expert: len(rows) for expert, rows in products.items()})
    found: dict[int, Routed] = {}
    explained = rest.float()
    for expert, (weights, numbers) in codes.items():
        tokens = weights.nonzero()[:, 0]
        mine, weight = numbers[tokens], weights[tokens]
        if len(mine) and int(mine.max()) >= len(products[expert]):
            return None
        explained = explained.index_add(0, tokens, weight[:, None] * products[expert][mine].float())
        found[expert] = Routed(torch.cat([use.inputs for use in uses[expert]])[mine], tokens, weight)
    allowed = _ROUNDING * torch.finfo(output.dtype).eps * output.float().norm()
    return (found, len(output)) if (explained - output.float()).norm() <= allowed else None


def _coded(
    forward: Callable[[], Any], stacks: Mapping[str, torch.Tensor], last: str, rest: torch.Tensor, counts: Mapping[int, int]
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Of each row of the module's output the weight of every expert (output rows,), and which row of its last product stands there."""
    digits = max(counts.values()).bit_length()
    width, places = rest.shape[1], {expert: place * (1 + digits) for place, expert in enumerate(counts)}
    passes = []
    for low in range(0, len(places) * (1 + digits), width):
        begun = dict.fromkeys(counts, 0)

        def write(use: Use, low: int = low, begun: dict[int, int] = begun) -> None:
            if use.attribute == last:
                numbers = begun[use.expert] + torch.arange(len(use.rows))
                begun[use.expert] += len(numbers)
                code = torch.stack([torch.ones_like(numbers), *(numbers >> digit & 1 for digit in range(digits))], 1)
                columns = places[use.expert] - low + torch.arange(1 + digits)
                here = (columns >= 0) & (columns < width)
                use.rows[:, columns[here]] = (_ONE * code[:, here]).to(use.output.dtype)

        with Watch(stacks, write, hollow=True):
            output = _rows(forward())
        assert output is not None
        passes.append(output.float() - rest.float())
    told = torch.cat(passes, 1) / _ONE
    found = {}
    for expert, place in places.items():
        weights = told[:, place]
        ones = told[:, place + 1 : place + 1 + digits] / weights[:, None] > 0.5  # of rows with no weight: nothing
        found[expert] = weights, (ones.long() << torch.arange(digits)).sum(1)
    return found


def _rows(output: Any) -> torch.Tensor | None:
    """A module's first output as rows (tokens, width)."""
    first = output[0] if isinstance(output, tuple) and output else output
    return first.reshape(-1, first.shape[-1]) if isinstance(first, torch.Tensor) and first.is_floating_point() else None
