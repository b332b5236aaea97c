"""Codebook: vectors of neighbouring columns as entries of tables that all rows share, or as sums of one entry of each of several."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.form import Form, expect
from modicum.forms.packing import pack, packed_bytes, packed_outline, unpack

# Bits of an index, numbers of a vector, and entries that are added, at the most.
MOST_BITS, MOST_DIMENSION, MOST_STAGES = 8, 16, 4


@dataclass(frozen=True)
class Vectors:
    """What codebooks are like: ``2^bits`` vectors of ``dimension`` columns in each of ``stages`` tables, for every ``columns`` columns (0: all)."""

    bits: int
    dimension: int = 1
    stages: int = 1
    columns: int = 0

    def count(self, columns: int) -> int:
        """Vectors of a row; the last may be ragged."""
        return -(-columns // self.dimension)

    def tables(self, columns: int) -> tuple[int, int, int, int]:
        """Shape of all tables: (groups, stages, entries, dimension)."""
        return -(-columns // self.columns) if self.columns else 1, self.stages, 2**self.bits, self.dimension

    def parts(self, columns: int) -> list[tuple[int, torch.Tensor, int]]:
        """Vectors that look for entries alike: the group of tables, which they are (vectors,), and columns of each, fewer in a ragged last one."""
        groups, last = self.groups(columns), columns % self.dimension
        whole = torch.arange(len(groups)) < columns // self.dimension
        found = [(group, (whole & (groups == group)).nonzero()[:, 0], self.dimension) for group in range(self.tables(columns)[0])]
        ragged = [(int(groups[-1]), (~whole).nonzero()[:, 0], last)] if last else []
        return [part for part in [*found, *ragged] if len(part[1])]

    def table_bytes(self, columns: int) -> int:
        """Bytes of all tables, in float16."""
        return 2 * math.prod(self.tables(columns))

    def groups(self, columns: int) -> torch.Tensor:
        """The group of tables that each vector of a row takes (vectors,)."""
        places = torch.arange(self.count(columns)) * self.dimension
        return places // self.columns if self.columns else torch.zeros_like(places)


class Codebook(Form):
    """``scale · Σ_s tables[group, s, codes_s]`` for each vector of neighbouring columns.

    *Shapes:* ``codes`` uint8 (rows, stages, vectors); ``tables`` float16 (groups, stages, entries, dimension); ``scale`` (rows, 1) in the weight's
    dtype. The dequantized value is computed in float32 and rounded once.
    """

    kind = "codebook"
    shared = frozenset({"tables"})

    def __init__(self, codes: torch.Tensor, tables: torch.Tensor, scale: torch.Tensor, layout: Vectors, columns: int, dtype: torch.dtype):
        self.codes, self.tables, self.scale, self.layout = codes, tables, scale, layout
        self.shape, self.dtype = (codes.shape[0], columns), dtype

    @override
    def value(self) -> torch.Tensor:
        return gathered(self.codes, self.tables.float(), self.layout, self.shape[1]) * self.scale.float()

    @override
    def dense(self) -> torch.Tensor:
        most = min(torch.finfo(self.dtype).max, torch.finfo(torch.float32).max)
        return self.value().clamp(-most, most).to(self.dtype)

    @override
    def movable(self) -> dict[str, torch.Tensor]:
        return {"tables": self.tables, "scale": self.scale}

    @override
    def having(self, numbers: Mapping[str, torch.Tensor]) -> Form:
        return Codebook(self.codes, numbers["tables"], numbers["scale"], self.layout, self.shape[1], self.dtype)

    def with_codes(self, codes: torch.Tensor) -> Codebook:
        """The same with other codes."""
        return Codebook(codes, self.tables, self.scale, self.layout, self.shape[1], self.dtype)

    @override
    def tensors(self) -> dict[str, torch.Tensor]:
        return {
            "codes": pack(self.codes.flatten(1), self.layout.bits),
            "tables": self.tables.contiguous(),
            "scale": self.scale.contiguous(),
        }

    @override
    @property
    def nbytes(self) -> int:
        return packed_bytes((self.shape[0], self._wide), self.layout.bits) + self.tables.nbytes + self.scale.nbytes

    @property
    def _wide(self) -> int:
        return self.layout.stages * self.layout.count(self.shape[1])

    @override
    @cached_property
    def outline(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {
            "codes": packed_outline((self.shape[0], self._wide), self.layout.bits),
            "tables": (self.tables.dtype, tuple(self.tables.shape)),
            "scale": (self.scale.dtype, tuple(self.scale.shape)),
        }

    @override
    def settings(self) -> dict[str, Any]:
        return asdict(self.layout)

    @override
    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        layout = Vectors(*(int(settings[name]) for name in ("bits", "dimension", "stages", "columns")))
        told = (layout.bits - 1, layout.dimension - 1, layout.stages - 1)
        most = (MOST_BITS - 1, MOST_DIMENSION - 1, MOST_STAGES - 1)
        if not all(0 <= each <= top for each, top in zip(told, most)) or layout.columns < 0 or layout.columns % layout.dimension:
            raise ValueError(f"codebooks of {layout} are not known")
        wide = layout.stages * layout.count(shape[1])
        codes = expect(unpack(tensors["codes"], layout.bits, wide), (shape[0], wide)).view(shape[0], layout.stages, -1)
        tables = expect(tensors["tables"], layout.tables(shape[1]), torch.float16)
        return cls(codes, tables, expect(tensors["scale"], (shape[0], 1)).to(dtype), layout, shape[1], dtype)

    @override
    @property
    def values(self) -> int:
        return self.codes.numel()


def gathered(codes: torch.Tensor, tables: torch.Tensor, layout: Vectors, columns: int) -> torch.Tensor:
    """Sums (rows, columns) of the entries that codes (rows, stages, vectors) name in ``tables`` (groups, stages, entries, dimension)."""
    flat = tables.flatten(0, 2)
    found = flat.new_zeros(())
    for stage, places in enumerate(placed(codes, layout, columns).unbind(1)):
        part = flat.index_select(0, places.reshape(-1))
        found = part if not stage else found + part
    return found.view(len(codes), -1)[:, :columns]


def placed(codes: torch.Tensor, layout: Vectors, columns: int) -> torch.Tensor:
    """Where the entries of codes (rows, stages, vectors) stand among all entries of all tables, of the same shape."""
    first = layout.groups(columns)[None] * layout.stages + torch.arange(layout.stages)[:, None]
    return codes.long() + (first << layout.bits)
