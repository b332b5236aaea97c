"""Codes of 1 to 8 bits packed row by row, lowest bit first."""

from __future__ import annotations

import math

import torch

# Codes that are packed at a time.
_CHUNK = 1 << 19


def packed_bytes(shape: torch.Size | tuple[int, ...], bits: int) -> int:
    """Bytes of ``pack`` for codes of this (rows, columns) shape."""
    return shape[0] * math.ceil(shape[1] * bits / 8)


def packed_outline(shape: torch.Size | tuple[int, ...], bits: int) -> tuple[torch.dtype, tuple[int, ...]]:
    """Dtype and shape of what ``pack`` makes of codes of this (rows, columns) shape."""
    return torch.uint8, (shape[0], math.ceil(shape[1] * bits / 8))


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
    # Eight codes, one number of 64 bits, fill as many bytes as a code has bits: pairs of them move together, then pairs of pairs, and again.
    packed = torch.empty(rows, math.ceil(columns * bits / 8), dtype=torch.uint8, device=codes.device)
    for some in _chunks(rows, columns):
        padded = torch.nn.functional.pad(codes[some], (0, -columns % 8))
        lots = padded.flatten().view(torch.int64).view(len(padded), -1)  # one row may have any stride
        for shift, lower, upper in _moves(bits):
            lots = (lots & lower).bitwise_or_((lots >> shift).bitwise_and_(upper))
        packed[some] = lots.view(torch.uint8).view(len(lots), -1, 8)[:, :, :bits].flatten(1)[:, : packed.shape[1]]
    return packed


def unpack(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """Codes uint8 (rows, columns) that ``pack`` packed. Raises ``ValueError`` where the packed width does not fit."""
    if not 1 <= bits <= 8 or packed.ndim != 2 or packed.dtype != torch.uint8 or packed.shape[1] != math.ceil(columns * bits / 8):
        raise ValueError(f"{tuple(packed.shape)} bytes do not hold rows of {columns} codes of {bits} bits")
    if bits == 8:
        return packed
    if 8 % bits == 0:
        mask = 2**bits - 1
        return torch.stack([(packed >> (place * bits)) & mask for place in range(8 // bits)], 2).flatten(1)[:, :columns].contiguous()
    codes = torch.empty(len(packed), columns, dtype=torch.uint8, device=packed.device)
    for some in _chunks(len(packed), columns):
        whole = torch.nn.functional.pad(packed[some], (0, -packed.shape[1] % bits))
        lots = torch.nn.functional.pad(whole.view(len(whole), -1, bits), (0, 8 - bits)).view(torch.int64)
        for shift, lower, upper in reversed(_moves(bits)):
            lots = (lots & lower).bitwise_or_((lots & upper).bitwise_left_shift_(shift))
        codes[some] = lots.view(torch.uint8).view(len(whole), -1)[:, :columns]
    return codes


def _moves(bits: int) -> list[tuple[int, int, int]]:
    """For fields of 8, 16 and 32 bits: by how much every second one moves down to its neighbour, a mask of those that stay, and one of those
    that have moved.
    """
    moves = []
    for width in (8, 16, 32):
        filled = bits * width // 8
        lower = sum((1 << filled) - 1 << at for at in range(0, 64, 2 * width))
        moves.append((width - filled, lower, lower << filled))
    return moves


def _chunks(rows: int, columns: int) -> list[slice]:
    """Rows that go through the cache together."""
    step = max(1, _CHUNK // max(1, columns))
    return [slice(start, start + step) for start in range(0, rows, step)]
