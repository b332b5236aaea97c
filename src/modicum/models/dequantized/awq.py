"""Checkpoints of AWQ: whole numbers of 4 bits, packed along their rows in an order of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from typing_extensions import override

from modicum.models.dequantized.format import FLOATS, Format, Quantized, Read, Stored, codes, require

# Places in a word of eight rows that follow each other.
_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


class Awq(Format):
    """``qweight`` (columns, rows / 8), ``qzeros`` (groups, rows / 8), ``scales`` (groups, rows), of the packing called ``gemm``.

    A weight is ``scale (code - zero)``; groups are columns that follow each other.
    """

    name = "AWQ"
    parts = ("qweight", "qzeros", "scales")

    @override
    def weight(self, stored: Stored, read: Read) -> Quantized:
        layout = str(self.said.get("version") or "gemm").lower()
        if layout != "gemm":
            raise ValueError(f"its packing is {layout!r}, which is not gemm")
        columns, packed = require(stored, "qweight", (torch.int32,))
        groups, rows = require(stored, "scales", FLOATS)
        if rows != packed * 8 or columns % groups or require(stored, "qzeros", (torch.int32,)) != (groups, packed):
            raise ValueError(f"its qweight {[columns, packed]} and scales {[groups, rows]} do not fit each other in 4 bits")

        def decode(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
            code, zero = (_ordered(codes(parts[part], 4, rows)).float() for part in ("qweight", "qzeros"))
            value = code.reshape(groups, -1, rows) - zero[:, None]
            return (value * parts["scales"].float()[:, None]).reshape(columns, rows).T.contiguous()

        width = columns // groups
        return Quantized((rows, columns), f"int4 in groups of {width}" if groups > 1 else "int4 a row", decode)


def _ordered(found: torch.Tensor) -> torch.Tensor:
    return found.reshape(len(found), -1, 8)[:, :, list(_ORDER)].reshape(len(found), -1)
