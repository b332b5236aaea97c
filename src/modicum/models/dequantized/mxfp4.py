"""Checkpoints whose stacks of experts are 4-bit floats with an exponent of two for every 32 of them, as GPT-OSS is published."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from typing_extensions import override

from modicum.models.dequantized.format import Format, Quantized, Read, Stored, exponents, nibbles, require

_WIDTH = 32


class Mxfp4(Format):
    """Of a stack of experts (experts, columns, rows), ``_blocks`` uint8 (experts, rows, groups, 16) and ``_scales`` (experts, rows, groups).

    Two numbers lie in a byte, the first one in its lower half.
    """

    name = "MXFP4"
    parts = ("blocks", "scales")

    @override
    def owner(self, key: str, names: Collection[str]) -> tuple[str, str] | None:
        weight, _, part = key.rpartition("_")
        return (weight, part) if part in self.parts and f"{weight}_blocks" in names else None

    @override
    def weight(self, stored: Stored, read: Read) -> Quantized:
        experts, rows, groups, half = require(stored, "blocks", (torch.uint8,), axes=4)
        scales = require(stored, "scales", (torch.uint8,), axes=3)
        if scales != (experts, rows, groups) or 2 * half != _WIDTH:
            raise ValueError(f"blocks {[experts, rows, groups, half]} beside scales {list(scales)}")

        def decode(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
            value = nibbles(parts["blocks"]) * exponents(parts["scales"])[..., None]
            return value.reshape(experts, rows, groups * _WIDTH).transpose(1, 2).contiguous()

        return Quantized((experts, groups * _WIDTH, rows), f"float4_e2m1 in groups of {_WIDTH}", decode)
