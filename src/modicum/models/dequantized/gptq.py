"""Checkpoints of GPTQ: whole numbers of 2 to 8 bits, packed along their columns."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from typing_extensions import override

from modicum.models.dequantized.format import FLOATS, Format, Quantized, Read, Stored, codes, require

_PLANES = (5, 6, 7)
_LAYOUTS = ("gptq", "gptq_v2", "gptq_p")


class Gptq(Format):
    """``qweight`` (columns · bits / 32, rows), ``qzeros`` (groups, rows · bits / 32), ``scales`` (groups, rows), ``g_idx`` (columns).

    A weight is ``scale (code - zero)``. The first layout (``gptq``) stores each zero less one, which wraps around; the others store it as it is.
    Codes of 5 to 7 bits lie in planes, those of 3 where the layout is ``gptq_p``. ``g_idx`` is the group of each column.
    """

    name = "GPTQ"
    parts = ("qweight", "qzeros", "scales", "g_idx")

    @override
    def weight(self, stored: Stored, read: Read) -> Quantized:
        layout = self.said.get("checkpoint_format") or "gptq"
        if layout not in _LAYOUTS:
            raise ValueError(f"its layout is {layout!r}, which is none of {', '.join(_LAYOUTS)}")
        packed, rows = require(stored, "qweight", (torch.int32,))
        groups, _ = require(stored, "scales", FLOATS)
        zeros = require(stored, "qzeros", (torch.int32,))
        bits = zeros[1] * 32 // rows
        columns = packed * 32 // bits if bits else 0
        if "g_idx" in stored:
            (columns,) = require(stored, "g_idx", (torch.int32, torch.int64), axes=1)
            bits = packed * 32 // columns
        if (
            not 2 <= bits <= 8 or packed != -(-columns * bits // 32) or zeros != (groups, -(-rows * bits // 32))
            or stored["scales"].shape[1] != rows or ("g_idx" not in stored and columns % groups)
        ):  # fmt: skip
            shapes = ", ".join(f"{part} {list(entry.shape)}" for part, entry in stored.items())
            raise ValueError(f"its tensors do not fit each other ({shapes})")
        planes, less = bits in _PLANES or layout == "gptq_p", layout == "gptq"
        if planes and (columns % 32 or rows % 32):
            raise ValueError(f"{rows} rows and {columns} columns in planes of 32")

        def decode(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
            zero = codes(parts["qzeros"], bits, rows, planes) + int(less)
            zero &= 2**bits - 1  # of what is stored less one, 0 comes as the largest
            group = parts["g_idx"].long() if "g_idx" in parts else torch.arange(columns) // (columns // groups)
            if int(group.min()) < 0 or int(group.max()) >= groups:
                raise ValueError(f"g_idx names a group that is none of {groups}")
            value = codes(parts["qweight"].T, bits, columns, planes).float()
            value -= zero.T.float()[:, group]
            return value.mul_(parts["scales"].T.float()[:, group])

        return Quantized((rows, columns), f"int{bits} in {groups} groups" if groups > 1 else f"int{bits} a row", decode)
