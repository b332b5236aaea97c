"""Ggml: rows of blocks exactly as llama.cpp stores them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from typing_extensions import override

from modicum.core.ggml import TYPES
from modicum.forms.form import Form, expect
from modicum.forms.ggml_blocks import LAYOUTS, put_together, taken_apart, values

# Weights whose parts are looked at together.
_PIECE = 1 << 18


class Ggml(Form):
    """What ``blocks`` uint8 (rows, bytes of a row) of one of llama.cpp's types stand for.

    Rows are independent: any choice, order or stack of rows of ``blocks`` is the form of those rows. ``decode`` gives what llama.cpp's own reader
    does, to the bit; the dense value is that rounded once.
    """

    kind = "ggml"

    def __init__(self, blocks: torch.Tensor, type: str, shape: tuple[int, int], dtype: torch.dtype):
        self.blocks, self.type, self.shape, self.dtype = blocks, type, shape, dtype

    @override
    def dense(self) -> torch.Tensor:
        return decode(self.blocks, self.type, self.shape[1]).to(self.dtype)

    @override
    def zeroed(self, where: torch.Tensor) -> Form:
        layout = LAYOUTS[self.type]
        if not layout.exact_zero:
            return super().zeroed(where)
        blocks = _by_block(self.blocks, self.type)
        parts = taken_apart(self.type, blocks)
        parts["codes"] = parts["codes"].masked_fill(where.reshape(len(blocks), -1), layout.zero)
        return Ggml(put_together(self.type, parts).view_as(self.blocks), self.type, self.shape, self.dtype)

    @override
    def tensors(self) -> dict[str, torch.Tensor]:
        return {"blocks": self.blocks.contiguous()}

    @override
    def settings(self) -> dict[str, Any]:
        return {"type": self.type}

    @override
    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        kind = settings["type"]
        if not isinstance(kind, str) or kind not in TYPES:
            raise ValueError(f"its type is not one of {', '.join(TYPES)}")
        return cls(expect(tensors["blocks"], (shape[0], TYPES[kind].row_bytes(shape[1])), torch.uint8), kind, shape, dtype)

    @override
    @property
    def values(self) -> int:
        return self.shape[0] * self.shape[1]


def decode(blocks: torch.Tensor, type: str, columns: int) -> torch.Tensor:
    """Float32 (rows, columns) of ``blocks`` uint8 (rows, bytes of a row); a piece at a time, so that little stands beside it."""
    found = torch.empty(len(blocks), columns)
    step = max(1, _PIECE // max(1, columns))
    for low in range(0, len(blocks), step):
        rows = slice(low, low + step)
        found[rows] = values(type, taken_apart(type, _by_block(blocks[rows], type))).view(-1, columns)
    return found


def _by_block(blocks: torch.Tensor, type: str) -> torch.Tensor:
    """Rows of blocks as (count, bytes of a block)."""
    return blocks.reshape(-1, TYPES[type].bytes)
