"""Integer: codes of 2 to 8 bits with a scale, and where asymmetric a zero point, per group of a row's columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.form import Form, expect
from modicum.forms.packing import pack, packed_bytes, packed_outline, unpack


class Integer(Form):
    """``(codes - zero) · scale`` with unsigned codes.

    *Shapes:* ``codes`` uint8 (rows, columns); ``scale`` (rows, groups) in the weight's dtype, or (1, 1) for one scale per tensor; ``zero``
    uint8 like ``scale``, or None where the grid is symmetric (zero point 2^(bits-1)). A row's last group may be ragged.
    The dequantized value is computed in the scale's dtype, as the runtimes do.
    """

    kind = "integer"

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, bits: int, group: int):
        self.codes, self.scale, self.zero, self.bits, self.group = codes, scale, zero, bits, group
        self.shape, self.dtype = (codes.shape[0], codes.shape[1]), scale.dtype

    def spread(self, per_group: torch.Tensor) -> torch.Tensor:
        """A (rows, groups) tensor laid out over the columns, broadcastable against the codes."""
        if self.group <= 0 or per_group.shape[1] == 1:
            return per_group
        return per_group.repeat_interleave(self.group, 1)[:, : self.shape[1]]

    @override
    def dense(self) -> torch.Tensor:
        zero = torch.tensor(float(2 ** (self.bits - 1))) if self.zero is None else self.spread(self.zero)
        return (self.codes.to(self.dtype) - zero.to(self.dtype)) * self.spread(self.scale)

    @override
    def zeroed(self, where: torch.Tensor) -> Form:
        zero = torch.tensor(2 ** (self.bits - 1), dtype=torch.uint8) if self.zero is None else self.spread(self.zero)
        return Integer(torch.where(where, zero, self.codes), self.scale, self.zero, self.bits, self.group)

    @override
    def finite(self) -> bool:
        # No code is further from its zero point than all levels together.
        return bool(torch.isfinite(self.scale * 2**self.bits).all()) or super().finite()

    @override
    def movable(self) -> dict[str, torch.Tensor]:
        return {"scale": self.scale}

    @override
    def having(self, numbers: Mapping[str, torch.Tensor]) -> Form:
        return Integer(self.codes, numbers["scale"], self.zero, self.bits, self.group)

    @override
    def tensors(self) -> dict[str, torch.Tensor]:
        found = {"codes": pack(self.codes, self.bits), "scale": self.scale.contiguous()}
        if self.zero is not None:
            found["zero"] = pack(self.zero, self.bits)
        return found

    @override
    @property
    def nbytes(self) -> int:
        zero = 0 if self.zero is None else packed_bytes(self.zero.shape, self.bits)
        return packed_bytes(self.codes.shape, self.bits) + self.scale.nbytes + zero

    @override
    @cached_property
    def outline(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        found = {"codes": packed_outline(self.codes.shape, self.bits), "scale": (self.scale.dtype, tuple(self.scale.shape))}
        return found if self.zero is None else found | {"zero": packed_outline(self.zero.shape, self.bits)}

    @override
    def settings(self) -> dict[str, Any]:
        return {"bits": self.bits, "group": self.group}

    @override
    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        bits, group = int(settings["bits"]), int(settings["group"])
        per_tensor = tuple(tensors["scale"].shape) == (1, 1)
        groups = (1, 1) if per_tensor else (shape[0], -(-shape[1] // group) if group > 0 else 1)
        scale = expect(tensors["scale"], groups).to(dtype)
        zero = expect(unpack(tensors["zero"], bits, groups[1]), groups) if "zero" in tensors else None
        return cls(unpack(tensors["codes"], bits, shape[1]), scale, zero, bits, group)

    @override
    @property
    def values(self) -> int:
        return self.codes.numel()


def stacked(forms: Sequence[Integer], *, shared: bool) -> Integer:
    """Forms of slices of rows as one; ``shared``: with one scale for all."""
    first = forms[0]
    scale = first.scale if shared else torch.cat([form.scale for form in forms])
    zeros = [form.zero for form in forms if form.zero is not None]
    zero = None if not zeros else zeros[0] if shared else torch.cat(zeros)
    return Integer(torch.cat([form.codes for form in forms]), scale, zero, first.bits, first.group)
