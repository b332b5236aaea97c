"""Where each weight of a model lies in the file: under which name, which of its rows, in which order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from modicum.core.errors import ModelError
from modicum.export.gguf.architectures import Architecture

# Kinds of tensors that llama.cpp reads as float32 alone, whatever their shape.
FLOATS = ("ffn_gate_inp", "position_embd", "ssm_conv1d", "ssm_a", "ssm_d")
# Kinds of units that are written as the matrix they are seen as.
MATRICES = ("linear", "conv1d", "embedding", "expert")
_SUFFIXES = (".weight", ".bias")


@dataclass(frozen=True)
class Part:
    """One tensor of the file, and which rows of the weight it holds, in order; None for all as they are."""

    name: str
    rows: torch.Tensor | None = None

    @property
    def kind(self) -> str:
        """Its name without the number of its block."""
        return kind_of(self.name)

    def of(self, value: torch.Tensor) -> torch.Tensor:
        """Its rows (the first axis) of a value."""
        return value if self.rows is None else value[self.rows]


def kind_of(name: str) -> str:
    """What a tensor of the file is, whatever block it is in."""
    stem = name
    for suffix in _SUFFIXES:
        stem = stem.removesuffix(suffix)
    return stem.split(".", 2)[2] if stem.startswith("blk.") else stem


class Naming:
    """Names for the weights of one model, by the map of the ``gguf`` package and the architecture's row."""

    def __init__(self, row: Architecture, config: Any, blocks: int, who: str):
        self.row, self.config, self.blocks, self.who = row, config, blocks, who

    @cached_property
    def _map(self) -> Any:
        import gguf

        arch = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == self.row.name)
        return gguf.get_tensor_name_map(arch, self.blocks)

    def parts(self, name: str, shape: tuple[int, ...]) -> list[Part]:
        """The tensors that hold the weight of a name, of this shape as a matrix (for one expert of a stack). Raises ``ModelError``."""
        owner, _, attribute = name.rpartition(".")
        if attribute in self.row.splits:
            names = [f"blk.{self._block(owner)}.{kind}.weight" for kind in self.row.splits[attribute]]
            return [Part(made, rows if len(names) > 1 else None) for made, rows in zip(names, torch.arange(shape[0]).chunk(len(names)))]
        found = self._map.get_name(name, try_suffixes=_SUFFIXES)
        if found is None:
            raise ModelError(
                f"{self.who}: target gguf: every weight must have a place in llama.cpp's {self.row.name}, {name} has none. "
                "Pass --target transformers or modicum."
            )
        return [Part(found, self._order(found, shape[0]))]

    def _order(self, found: str, rows: int) -> torch.Tensor | None:
        order = self.row.orders.get(kind_of(found))
        try:
            return None if order is None else order(rows, self.config)
        except (RuntimeError, ZeroDivisionError):  # shapes that no heads give
            raise ModelError(f"{self.who}: the {rows} rows of {found} must be those of whole heads, are not. Check the file.") from None

    def stacked(self, name: str) -> bool:
        """Whether a weight is a stack of experts."""
        return name.rpartition(".")[2] in self.row.splits

    @staticmethod
    def _block(owner: str) -> str:
        return next(part for part in owner.split(".") if part.isdecimal())

    def value(self, part: Part, value: torch.Tensor) -> torch.Tensor:
        """What is written for a dense value of a part: its rows, in float32 where llama.cpp reads nothing else."""
        found = part.of(value)
        found = found.squeeze(1) if part.kind == "ssm_conv1d" and found.ndim == 3 else found
        if not self.floats(part, tuple(found.shape)):
            return found
        return self._written(part, found.float())

    def _written(self, part: Part, value: torch.Tensor) -> torch.Tensor:
        if part.kind == "ssm_a":
            return -value.exp()
        return value + self.row.added if self.row.added and part.kind.endswith("norm") else value

    def read(self, part: Part, value: torch.Tensor) -> torch.Tensor:
        """The weight's own values for what ``value`` wrote, before its rows are put back."""
        if part.kind == "ssm_a":
            return (-value).log()
        return value - self.row.added if self.row.added and part.kind.endswith("norm") else value

    @staticmethod
    def floats(part: Part, shape: tuple[int, ...]) -> bool:
        """Whether a part is written in float32 whatever its dtype."""
        return len(shape) == 1 or part.kind in FLOATS


def stored_shape(part: Part, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a part has in the file, of a weight of this shape."""
    rows = shape[0] if part.rows is None else len(part.rows)
    return (rows, *(shape[2:] if part.kind == "ssm_conv1d" and len(shape) == 3 else shape[1:]))


Types = Mapping[torch.dtype, str]
DENSE: Types = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
