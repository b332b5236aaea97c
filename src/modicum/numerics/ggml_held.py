"""Blocks of one of llama.cpp's types taken apart by columns: as solvers decide codes, and move scales."""

from __future__ import annotations

import numpy as np
import torch

from modicum.core.ggml import TYPES
from modicum.forms.ggml_blocks import LAYOUTS, put_together, taken_apart
from modicum.numerics.ggml_lattice import nearest_under


class Held:
    """``codes`` uint8 (columns, rows); float32 ``step`` and ``least`` (blocks of a row, rows), and ``whole`` and ``below``, the whole numbers of
    them (groups of a row, rows), as far as the type has them; of each group what levels are multiplied by, ``scale``, and what is added, ``offset``.
    """

    def __init__(self, blocks: torch.Tensor, name: str):
        self.name, self.layout, self.rows = name, LAYOUTS[name], len(blocks)
        self.width, self.block = self.layout.columns, TYPES[name].columns
        parts = taken_apart(name, blocks.reshape(-1, TYPES[name].bytes))
        by_columns = lambda each: each.reshape(self.rows, -1).T.contiguous()
        self.codes, self.step = by_columns(parts["codes"]), by_columns(parts["step"]).float() * self.layout.unit
        self.least = by_columns(parts["least"]).float() if self.layout.least else None
        self.whole = self.below = None
        if self.layout.scales:
            sides = parts["sides"].float().split(self.block // self.width, 1)
            self.whole = by_columns(sides[0]) - self.layout.bias
            self.below = by_columns(sides[1]) if self.layout.least else None
        table = torch.tensor(self.layout.table, dtype=torch.float32).numpy()
        self._table, self._middles = table, (table[1:] + table[:-1]) / 2
        self.scale, self.offset = self._grids(slice(None))

    def _grids(self, groups: slice) -> tuple[torch.Tensor, torch.Tensor]:
        per = self.block // self.width
        spread = lambda each: each.repeat_interleave(per, 0)[groups]
        if self.whole is None:
            scale = spread(self.step)
            return scale, torch.zeros_like(scale) if self.least is None else spread(self.least)
        scale = spread(self.step) * self.whole[groups]
        if self.least is None or self.below is None:
            return scale, torch.zeros_like(scale)
        return scale, -(spread(self.least) * self.below[groups])

    def moved(self, groups: slice) -> None:
        """Take over what was changed of the scales and minima of some groups."""
        self.scale[groups], self.offset[groups] = self._grids(groups)

    def levels(self, columns: slice) -> torch.Tensor:
        """Levels of columns (columns, rows)."""
        return self.layout.levels(self.codes[columns])

    def value(self, column: int) -> np.ndarray:
        """What a column's codes stand for (rows,)."""
        group, codes = column // self.width, self.codes[column].numpy()
        levels = self._table[codes] if self.layout.table else codes.astype(np.float32) - self.layout.zero
        return levels * self.scale[group].numpy() + self.offset[group].numpy()

    def values(self, columns: slice = slice(None)) -> torch.Tensor:
        """What codes of columns stand for (columns, rows); of some that share a scale, or of all."""
        if columns != slice(None):
            group = columns.start // self.width
            return self.levels(columns).mul_(self.scale[group]).add_(self.offset[group])
        spread = lambda each: each.repeat_interleave(self.width, 0)
        return self.levels(columns).mul_(spread(self.scale)).add_(spread(self.offset))

    def decide(self, column: int, wanted: np.ndarray) -> np.ndarray:
        """Give a column the codes nearest to ``wanted`` (rows,); returns what they stand for."""
        group = column // self.width
        scale, offset = self.scale[group].numpy(), self.offset[group].numpy()
        placed = wanted - offset
        placed *= np.where(np.abs(scale) < np.finfo(np.float32).tiny, np.float32(0), 1 / scale)
        if self.layout.table:
            codes = np.searchsorted(self._middles, placed)
            levels = self._table[codes]
        else:
            placed += self.layout.zero
            np.rint(placed, out=placed)
            codes = np.clip(placed, 0, self.layout.codes - 1, out=placed)
            levels = codes - self.layout.zero
        self.codes[column].numpy()[:] = codes
        return levels * scale + offset

    def together(self, columns: slice, wanted: torch.Tensor, metric: torch.Tensor) -> None:
        """Give columns that take a point of a lattice together the one whose values are nearest to ``wanted`` (columns, rows) under ``metric``."""
        assert self.layout.points is not None
        scale = self.scale[columns.start // self.width]
        aim = wanted * torch.where(scale.abs() < torch.finfo(torch.float32).tiny, 0.0, 1 / scale)
        levels = nearest_under(self.layout.points, aim, metric)
        self.codes[columns] = torch.bucketize(levels, torch.tensor(self.layout.table, dtype=torch.float32)).to(torch.uint8)

    def blocks(self) -> torch.Tensor:
        """Blocks uint8 (rows, bytes of a row) as they are now."""
        by_block = lambda each, count: each.T.reshape(-1, count)
        parts = {"codes": by_block(self.codes, self.block), "step": (by_block(self.step, 1)[:, 0] / self.layout.unit).half()}
        if self.least is not None:
            parts["least"] = by_block(self.least, 1)[:, 0].half()
        if self.whole is not None:
            per = self.block // self.width
            sides = [by_block(self.whole + self.layout.bias, per), *([] if self.below is None else [by_block(self.below, per)])]
            parts["sides"] = torch.cat(sides, 1).to(torch.uint8)
        return put_together(self.name, parts).view(self.rows, -1)
