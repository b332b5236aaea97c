"""Codes of 1 to 8 bits packed row by row, lowest bit first."""

from __future__ import annotations

import math

import numpy as np
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
    planes = np.unpackbits(codes.cpu().numpy()[:, :, None], axis=2, bitorder="little")[:, :, :bits]
    return torch.from_numpy(np.packbits(planes.reshape(rows, columns * bits), axis=1, bitorder="little")).to(codes.device)


def unpack(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """Codes uint8 (rows, columns) that ``pack`` packed. Raises ``ValueError`` where the packed width does not fit."""
    if not 1 <= bits <= 8 or packed.ndim != 2 or packed.dtype != torch.uint8 or packed.shape[1] != math.ceil(columns * bits / 8):
        raise ValueError(f"{tuple(packed.shape)} bytes do not hold rows of {columns} codes of {bits} bits")
    if bits == 8:
        return packed
    if 8 % bits == 0:
        mask = 2**bits - 1
        return torch.stack([(packed >> (place * bits)) & mask for place in range(8 // bits)], 2).flatten(1)[:, :columns].contiguous()
    planes = np.unpackbits(packed.cpu().numpy(), axis=1, bitorder="little")[:, : columns * bits]
    planes = np.pad(planes.reshape(len(packed), columns, bits), ((0, 0), (0, 0), (0, 8 - bits)))
    return torch.from_numpy(np.packbits(planes, axis=2, bitorder="little")[:, :, 0]).to(packed.device)
