"""Checkpoints of compressed-tensors: packed whole numbers, whole numbers and floats of 8 bits, and floats of 4 or 6 bits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.minifloat import LAYOUTS
from modicum.forms.packing import unpack
from modicum.models.dequantized.float8 import blocks
from modicum.models.dequantized.format import (
    FLOATS,
    FLOATS8,
    Format,
    Quantized,
    Read,
    Stored,
    block,
    codes,
    exponents,
    nibbles,
    require,
    shared,
    spread,
)  # fmt: skip

_LAYOUT = LAYOUTS["mxfp6_e2m3"]
_SIX, _GROUP = _LAYOUT.bits, _LAYOUT.group
_SCALES = (*FLOATS, *FLOATS8, torch.float8_e8m0fnu, torch.uint8)


class CompressedTensors(Format):
    """``weight_packed`` with ``weight_shape``, or ``weight``; ``weight_scale``, and where there are any ``weight_zero_point``, ``weight_g_idx``.

    A weight is ``scale (code - zero)``. Words of packed whole numbers hold them without a gap; earlier versions left the bits of a word free
    that no whole number fills. Four-bit floats have scales that are 8-bit floats over ``weight_global_scale``, or exponents of two.
    """

    name = "compressed-tensors"
    parts = ("weight_packed", "weight_shape", "weight", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_global_scale")

    @override
    def weight(self, stored: Stored, read: Read) -> Quantized | None:
        if "weight_packed" not in stored:
            return None if set(stored) == {"weight"} else self._whole(stored)
        return self._integers(stored, read) if stored["weight_packed"].dtype == torch.int32 else self._floats(stored)

    def _groups(self) -> Iterator[Mapping[str, Any]]:
        """What is said of weights, of each group of layers."""
        groups = self.said.get("config_groups")
        for group in groups.values() if isinstance(groups, Mapping) else ():
            if isinstance(group, Mapping) and isinstance(group.get("weights"), Mapping):
                yield group["weights"]

    def _integers(self, stored: Stored, read: Read) -> Quantized:
        rows, packed = require(stored, "weight_packed", (torch.int32,))
        require(stored, "weight_shape", (torch.int64, torch.int32), axes=1)
        told = read("weight_shape").tolist() if stored["weight_shape"].shape == (2,) else []
        if len(told) != 2 or told[0] != rows or not 0 < told[1] <= packed * 32:
            raise ValueError(f"weight_shape says {told} of {rows} rows of {packed} words")
        shape = (rows, told[1])
        bits, apart = self._bits(shape[1], packed)
        scales = require(stored, "weight_scale", FLOATS, axes=0)
        size = (1, shape[1]) if "weight_g_idx" in stored else block(shape, scales)
        if "weight_g_idx" in stored:
            require(stored, "weight_g_idx", (torch.int32, torch.int64), axes=1)
        if zeros := "weight_zero_point" in stored:
            self._require_zeros(stored, scales, rows, bits)

        def decode(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
            value = _unpacked(parts["weight_packed"], bits, shape[1], apart).float()
            value -= 2 ** (bits - 1)
            by = _columns(parts, shape, scales, size)
            if zeros:
                zero = parts["weight_zero_point"]
                zero = zero if zero.dtype == torch.int8 else _unpacked(zero.T, bits, rows, apart).T.float() - 2 ** (bits - 1)
                value -= by(zero)
            return value.mul_(by(parts["weight_scale"]))

        return Quantized(shape, f"int{bits} {'in groups by g_idx' if 'weight_g_idx' in stored else shared(shape, size)}", decode)

    def _bits(self, columns: int, packed: int) -> tuple[int, bool]:
        """Bits of a code, and whether words have bits free. Raises ``ValueError`` where that cannot be told."""
        said = [group.get("num_bits") for group in self._groups()]
        found = [(bits, False) for bits in range(1, 9) if bits in said and math.ceil(columns * bits / 32) == packed]
        found += [(bits, True) for bits in (3, 5, 6, 7) if bits in said and math.ceil(columns / (32 // bits)) == packed]
        if len({bits for bits, _ in found}) != 1:
            raise ValueError(f"{packed} words hold {columns} codes of none of {sorted(map(str, said))} bits, or of several")
        return found[0]

    @staticmethod
    def _require_zeros(stored: Stored, scales: tuple[int, ...], rows: int, bits: int) -> None:
        has = require(stored, "weight_zero_point", (torch.int32, torch.int8), axes=0)
        packed = stored["weight_zero_point"].dtype == torch.int32
        fits = (math.ceil(rows * bits / 32), math.ceil(rows / (32 // bits))) if packed else (rows,)
        if has != scales and not (len(has) == 2 and has[0] in fits and has[1:] == scales[1:]):
            raise ValueError(f"weight_zero_point {list(has)} beside scales {list(scales)}")
        if packed and len(has) != 2:
            raise ValueError(f"weight_zero_point {list(has)}, packed")

    def _whole(self, stored: Stored) -> Quantized:
        shape = require(stored, "weight", (torch.int8, *FLOATS8), axes=0)
        if len(shape) < 2:
            raise ValueError(f"weight {list(shape)}")
        scales = require(stored, "weight_scale", _SCALES, axes=0)
        size = block(shape, scales, [size for group in self._groups() for size in blocks(group.get("block_structure"))])
        zeros = "weight_zero_point" in stored and stored["weight"].dtype == torch.int8
        if zeros and require(stored, "weight_zero_point", (torch.int8,), axes=0) != scales:
            raise ValueError("weight_zero_point has another shape than weight_scale")

        def decode(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
            value = parts["weight"].float()
            if zeros:
                value -= spread(parts["weight_zero_point"], shape, size)
            return value.mul_(spread(_scale(parts), shape, size))

        return Quantized(shape, f"{str(stored['weight'].dtype)[6:]} {shared(shape, size)}", decode)

    def _floats(self, stored: Stored) -> Quantized:
        rows, packed = require(stored, "weight_packed", (torch.uint8,))
        scales = require(stored, "weight_scale", _SCALES)
        # A byte may hold two floats, or three four of six bits: which, the columns that share a scale tell, and else what is said.
        said = [group for group in self._groups() if group.get("num_bits") == _SIX and group.get("group_size") == _GROUP]
        bits = _SIX if said and packed * 8 == scales[1] * _GROUP * _SIX else 4
        shape = (rows, packed * 8 // bits)
        size = block(shape, scales)
        if "weight_global_scale" in stored and math.prod(require(stored, "weight_global_scale", FLOATS, axes=0)) != 1:
            raise ValueError("weight_global_scale is not one number")

        def decode(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
            value = nibbles(parts["weight_packed"]) if bits == 4 else _LAYOUT.decode(unpack(parts["weight_packed"], bits, shape[1]))
            return value.mul_(spread(_scale(parts), shape, size))

        return Quantized(shape, f"{'float4_e2m1' if bits == 4 else 'float6_e2m3'} {shared(shape, size)}", decode)


def _scale(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Scales in float32."""
    scale = parts["weight_scale"]
    found = exponents(scale) if scale.dtype == torch.uint8 else scale.float()
    return found / parts["weight_global_scale"].float() if "weight_global_scale" in parts else found


def _unpacked(words: torch.Tensor, bits: int, count: int, apart: bool) -> torch.Tensor:
    """Codes (rows, count) of words (rows, words)."""
    if not apart:
        return codes(words, bits, count)
    fields = [(words >> place * bits) & (2**bits - 1) for place in range(32 // bits)]
    return torch.stack(fields, -1).reshape(len(words), -1)[:, :count].to(torch.uint8)


def _columns(parts: Mapping[str, torch.Tensor], shape: tuple[int, ...], scales: tuple[int, ...], size: tuple[int, int]) -> Any:
    """How numbers of groups are dealt out to columns."""
    group = parts.get("weight_g_idx")
    if group is None or bool((group < 0).all()):
        size = size if group is None else block(shape, scales)
        return lambda numbers: spread(numbers, shape, size)
    if len(scales) != 2 or len(group) != shape[1] or int(group.min()) < 0 or int(group.max()) >= scales[1]:
        raise ValueError(f"weight_g_idx names a group that is none of {list(scales)}")
    return lambda numbers: numbers.float()[:, group.long()]
