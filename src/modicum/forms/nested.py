"""Nested: integers whose scales are whole numbers of few bits under one scale for each row."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.form import Form, expect
from modicum.forms.integer import Integer
from modicum.forms.packing import pack, packed_bytes, packed_outline, unpack

# Bits of a step at the least and at the most.
FEWEST, MOST = 3, 8


class Nested(Form):
    """``(codes - zero) · (outer · steps)``: an ``Integer`` whose scale is a product, rounded once to the weight's dtype.

    *Shapes:* ``codes`` and ``zero`` as of ``Integer``; ``steps`` int8 (rows, groups) of ``scales`` bits, none -2^(scales-1); ``outer`` (rows, 1) in
    the weight's dtype.
    """

    kind = "nested"

    def __init__(
        self, codes: torch.Tensor, steps: torch.Tensor, outer: torch.Tensor, zero: torch.Tensor | None, bits: int, group: int, scales: int
    ):
        self.codes, self.steps, self.outer, self.zero, self.bits, self.group, self.scales = codes, steps, outer, zero, bits, group, scales
        self.shape, self.dtype = (codes.shape[0], codes.shape[1]), outer.dtype

    @classmethod
    def of(cls, form: Integer, steps: torch.Tensor, outer: torch.Tensor, scales: int) -> Nested:
        """Codes and zero points of a form under other scales."""
        return cls(form.codes, steps, outer, form.zero, form.bits, form.group, scales)

    @cached_property
    def plain(self) -> Integer:
        """The same integers under their scales."""
        return Integer(self.codes, (self.outer.float() * self.steps).to(self.outer.dtype), self.zero, self.bits, self.group)

    @override
    def dense(self) -> torch.Tensor:
        return self.plain.dense().to(self.dtype)

    @override
    def zeroed(self, where: torch.Tensor) -> Form:
        zeroed = self.plain.zeroed(where)
        assert isinstance(zeroed, Integer)
        return Nested.of(zeroed, self.steps, self.outer, self.scales)

    @override
    def finite(self) -> bool:
        return self.plain.finite()

    @override
    def movable(self) -> dict[str, torch.Tensor]:
        return {"scale": self.outer}

    @override
    def having(self, numbers: Mapping[str, torch.Tensor]) -> Form:
        return Nested(self.codes, self.steps, numbers["scale"], self.zero, self.bits, self.group, self.scales)

    @override
    def tensors(self) -> dict[str, torch.Tensor]:
        lifted = (self.steps.short() + 2 ** (self.scales - 1)).to(torch.uint8)
        found = {"codes": pack(self.codes, self.bits), "steps": pack(lifted, self.scales), "scale": self.outer.contiguous()}
        return found if self.zero is None else found | {"zero": pack(self.zero, self.bits)}

    @override
    @property
    def nbytes(self) -> int:
        zero = 0 if self.zero is None else packed_bytes(self.zero.shape, self.bits)
        return packed_bytes(self.codes.shape, self.bits) + packed_bytes(self.steps.shape, self.scales) + self.outer.nbytes + zero

    @override
    @cached_property
    def outline(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        found = {
            "codes": packed_outline(self.codes.shape, self.bits), "steps": packed_outline(self.steps.shape, self.scales),
            "scale": (self.outer.dtype, tuple(self.outer.shape)),
        }  # fmt: skip
        return found if self.zero is None else found | {"zero": packed_outline(self.zero.shape, self.bits)}

    @override
    def settings(self) -> dict[str, Any]:
        return {"bits": self.bits, "group": self.group, "scales": self.scales}

    @override
    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        bits, group, scales = int(settings["bits"]), int(settings["group"]), int(settings["scales"])
        if not FEWEST <= scales <= MOST or group < 1:
            raise ValueError(f"steps of {scales} bits for {group} columns are not known")
        groups = (shape[0], -(-shape[1] // group))
        zero = expect(unpack(tensors["zero"], bits, groups[1]), groups) if "zero" in tensors else None
        steps = (expect(unpack(tensors["steps"], scales, groups[1]), groups).short() - 2 ** (scales - 1)).to(torch.int8)
        codes = expect(unpack(tensors["codes"], bits, shape[1]), shape)
        return cls(codes, steps, expect(tensors["scale"], (shape[0], 1)).to(dtype), zero, bits, group, scales)

    @override
    @property
    def values(self) -> int:
        return self.codes.numel()
