"""Checkpoints of 8-bit floats with a scale for each block, row or weight, as Transformers and DeepSeek write them."""

from __future__ import annotations

from collections.abc import Collection

import torch
from typing_extensions import override

from modicum.models.dequantized.format import FLOATS, FLOATS8, Format, Quantized, Read, Stored, block, require, shared, spread

_SCALES = ("_scale_inv", "_scale")


class Float8(Format):
    """A weight (..., rows, columns) of 8-bit floats and, under its name with ``_scale_inv``, what they are multiplied by.

    Blocks are as large as ``weight_block_size`` says; those at the end of rows and columns may be smaller. A scale may be a power of two alone.
    """

    name = "FP8"
    parts = ()

    @override
    def owner(self, key: str, names: Collection[str]) -> tuple[str, str] | None:
        if any(key + ending in names for ending in _SCALES):
            return key, "weight"
        weight = next((key.removesuffix(ending) for ending in _SCALES if key.endswith(ending)), key)
        return (weight, "scale") if weight != key and weight in names else None

    @override
    def weight(self, stored: Stored, read: Read) -> Quantized:
        shape = require(stored, "weight", FLOATS8, axes=0)
        scales = require(stored, "scale", (*FLOATS, torch.float8_e8m0fnu), axes=0)
        size = block(shape, scales, blocks(self.said.get("weight_block_size")))
        decode = lambda parts: parts["weight"].float().mul_(spread(parts["scale"], shape, size))
        return Quantized(shape, f"{str(stored['weight'].dtype)[6:]} {shared(shape, size)}", decode)


def blocks(said: object) -> list[tuple[int, int]]:
    """Rows and columns of a block, as a config says them; none where it does not."""
    whole = isinstance(said, list | tuple) and len(said) == 2 and all(type(size) is int and size > 0 for size in said)
    return [(said[0], said[1])] if whole else []  # type: ignore[index]
