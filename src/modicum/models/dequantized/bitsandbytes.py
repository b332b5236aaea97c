"""Checkpoints of bitsandbytes: four-bit levels in blocks, and whole numbers of eight bits with a scale per row."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.blockwise import LEVELS
from modicum.models.dequantized.format import FLOATS, Format, Quantized, Read, Stored, require

_STATE = "quant_state.bitsandbytes__"
_BESIDE = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", *(f"{_STATE}{type}" for type in LEVELS))
_ROWS = ("SCB", "weight_format")
# What 127 codes on each side span.
_INT8 = 1 / 127
# Above every number that float32 holds.
_MOST = 2.0**128


class Bitsandbytes(Format):
    """``weight``, and under its name ``absmax`` and a text of the rest; of eight bits ``SCB``, the largest magnitude of each row.

    Codes of four bits follow each other row by row, the first in a byte's upper half, and every ``blocksize`` of them have a scale: float32, or in
    eight bits an entry of ``nested_quant_map`` times that block's ``nested_absmax`` and above an offset. A weight is its level times that.
    """

    name = "bitsandbytes"
    parts = ()

    @override
    def owner(self, key: str, names: Collection[str]) -> tuple[str, str] | None:
        stem, _, last = key.rpartition(".")
        if last == "weight" and (f"{key}.absmax" in names or f"{stem}.SCB" in names):
            return key, "weight"
        if last in _ROWS and f"{stem}.weight" in names:
            return f"{stem}.weight", last
        part = next((part for part in _BESIDE if key.endswith(f".weight.{part}")), "")
        return (key.removesuffix(f".{part}"), part) if part else None

    @override
    def weight(self, stored: Stored, read: Read) -> Quantized:
        if "SCB" in stored:
            return self._rows(stored, read)
        types = [type for type in LEVELS if _STATE + type in stored]
        if len(types) != 1:
            raise ValueError(f"it has {len(types)} texts beside it, not one")
        (type,) = types
        require(stored, _STATE + type, (torch.uint8,), axes=1)
        said = _said(read(_STATE + type), type)
        shape, block, dtype = said["shape"], said["blocksize"], said["dtype"]
        count, blocks = math.prod(shape), math.ceil(math.prod(shape) / block)
        entry = stored.get("weight")
        if entry is None or math.prod(entry.shape) * entry.dtype.itemsize != math.ceil(count / 2):
            raise ValueError(f"weight does not hold {count} codes of four bits")
        nested = "nested_absmax" in stored
        if require(stored, "absmax", (torch.uint8,) if nested else FLOATS, axes=1) != (blocks,):
            raise ValueError(f"absmax {list(stored['absmax'].shape)} of {blocks} blocks")
        if nested:
            self._require_nested(stored, said, blocks)

        def decode(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
            packed = parts["weight"].contiguous().flatten().view(torch.uint8)
            codes = torch.stack([packed >> 4, packed & 15], 1).flatten()[:count]
            scale = _nested(parts, said, blocks) if nested else parts["absmax"].float()
            value = LEVELS[type][codes.int()].mul_(scale.repeat_interleave(min(block, count))[:count])
            return value.view(shape).to(dtype).float()

        return Quantized(shape, f"{type} in blocks of {block}{', scales in eight bits' if nested else ''}", decode)

    @staticmethod
    def _require_nested(stored: Stored, said: Mapping[str, Any], blocks: int) -> None:
        outer = math.ceil(blocks / said["nested_blocksize"])
        if require(stored, "nested_absmax", FLOATS, axes=1) != (outer,) or require(stored, "nested_quant_map", FLOATS, axes=1) != (256,):
            raise ValueError(f"nested_absmax {list(stored['nested_absmax'].shape)} of {outer} blocks of scales, or no map of 256 numbers")

    @staticmethod
    def _rows(stored: Stored, read: Read) -> Quantized:
        shape = require(stored, "weight", (torch.int8,))
        if require(stored, "SCB", FLOATS, axes=1) != shape[:1]:
            raise ValueError(f"SCB {list(stored['SCB'].shape)} of {shape[0]} rows")
        if "weight_format" in stored and (stored["weight_format"].shape not in ((), (1,)) or int(read("weight_format")) != 0):
            raise ValueError("weight_format is not that of plain rows")
        decode = lambda parts: parts["weight"].float() * parts["SCB"].float()[:, None] * _INT8
        return Quantized(shape, "int8 a scale per row", decode)


def _nested(parts: Mapping[str, torch.Tensor], said: Mapping[str, Any], blocks: int) -> torch.Tensor:
    """Scales (blocks,) that eight bits stand for."""
    outer = parts["nested_absmax"].float().repeat_interleave(min(said["nested_blocksize"], blocks))[:blocks]
    return parts["nested_quant_map"].float()[parts["absmax"].int()] * outer + said["nested_offset"]


def _said(text: torch.Tensor, type: str) -> dict[str, Any]:
    """What stands beside a weight. Raises ``ValueError`` where it is anything else."""
    try:
        said = json.loads(bytes(text.tolist()))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the text beside it is no JSON ({error})") from None
    if not isinstance(said, dict) or said.get("quant_type") != type:
        raise ValueError(f"the text beside it is not of {type}")
    shape, dtype = said.get("shape"), getattr(torch, str(said.get("dtype")), None)
    count = lambda number: isinstance(number, int) and not isinstance(number, bool) and 0 < number < 2**40
    if not isinstance(shape, list) or len(shape) != 2 or not all(map(count, shape)) or not count(said.get("blocksize")):
        raise ValueError(f"the text beside it says shape {shape} in blocks of {said.get('blocksize')}")
    if dtype not in FLOATS:
        raise ValueError(f"the text beside it says dtype {said.get('dtype')}")
    inner, offset = said.get("nested_blocksize", 1), said.get("nested_offset", 0.0)
    if not count(inner) or isinstance(offset, bool) or not isinstance(offset, int | float) or not abs(offset) < _MOST:
        raise ValueError(f"the text beside it says scales in blocks of {inner} above {offset}")
    return said | {"shape": tuple(shape), "dtype": dtype, "nested_offset": float(offset)}
