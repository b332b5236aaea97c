"""Codes of 1 to 8 bits packed row by row, lowest bit first."""

from __future__ import annotations

import math

import torch


def packed_bytes(shape: torch.Size | tuple[int, ...], bits: int) -> int:
    """Bytes of ``pack`` for codes of this (rows, columns) shape."""
    return shape[0] * math.ceil(shape[1] * bits / 8)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes uint8 (rows, columns) below 2^bits into uint8 (rows, ⌈columns · bits / 8⌉)."""
    if bits == 8:
        return codes.contiguous()
    rows, columns = codes.shape
    if 8 % bits == 0:
        per = 8 // bits
        padded = torch.nn.functional.pad(codes, (0, -columns % per)).view(rows, -1, per)
        packed = torch.zeros(padded.shape[:2], dtype=torch.uint8, device=codes.device)
        for place in range(per):
            packed |= padded[:, :, place] << (place * bits)
        return packed
    # Eight codes fill as many bytes as a code has bits; each code lies in one byte or two.
    lots = torch.nn.functional.pad(codes, (0, -columns % 8)).view(rows, -1, 8).to(torch.int16)
    packed = torch.zeros(rows, lots.shape[1], bits + 1, dtype=torch.int16, device=codes.device)
    for place in range(8):
        first, shift = divmod(place * bits, 8)
        spread = lots[:, :, place] << shift
        packed[:, :, first] |= spread & 255
        packed[:, :, first + 1] |= spread >> 8
    return packed[:, :, :bits].to(torch.uint8).flatten(1)[:, : math.ceil(columns * bits / 8)].contiguous()


def unpack(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """Codes uint8 (rows, columns) that ``pack`` packed. Raises ``ValueError`` where the packed width does not fit."""
    if not 1 <= bits <= 8 or packed.ndim != 2 or packed.dtype != torch.uint8 or packed.shape[1] != math.ceil(columns * bits / 8):
        raise ValueError(f"{tuple(packed.shape)} bytes do not hold rows of {columns} codes of {bits} bits")
    if bits == 8:
        return packed
    if 8 % bits == 0:
        mask = 2**bits - 1
        return torch.stack([(packed >> (place * bits)) & mask for place in range(8 // bits)], 2).flatten(1)[:, :columns].contiguous()
    lots = torch.nn.functional.pad(packed, (0, -packed.shape[1] % bits)).view(len(packed), -1, bits).to(torch.int16)
    lots = torch.nn.functional.pad(lots, (0, 1))
    codes = torch.empty(len(packed), lots.shape[1], 8, dtype=torch.uint8, device=packed.device)
    for place in range(8):
        first, shift = divmod(place * bits, 8)
        codes[:, :, place] = ((lots[:, :, first] | (lots[:, :, first + 1] << 8)) >> shift) & (2**bits - 1)
    return codes.flatten(1)[:, :columns].contiguous()
