"""The quantize family: every unit of a site gets codes on an integer grid; a method only decides which codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from typing_extensions import override

from modicum.core.method import Change, Method, find
from modicum.core.settings import param
from modicum.core.unit import Site, Stats
from modicum.forms import Form
from modicum.forms.lift import on_dense
from modicum.numerics.grid import Grid

# The method that takes the least work for its codes.
_CHEAPEST = "nearest"


@dataclass(frozen=True, kw_only=True)
class Quantizer(Method):
    """Settings of the grid that all integer quantizers share."""

    bits: int = param(4, "bits per code", between=(2, 8), dial=True)
    group: int = param(64, "columns per scale; 0: one scale per row, -1: one per tensor", between=(-1, 1 << 20))
    symmetric: bool = param(False, "grid symmetric around zero, without zero points")

    @property
    def grid(self) -> Grid:
        """The grid the settings describe."""
        return Grid(self.bits, self.group, self.symmetric)

    @property
    @override
    def by_rows(self) -> bool:
        """Rows share a scale only where there is one for all."""
        return self.group >= 0

    def blueprint(self) -> Method:
        """The family's cheapest method, whose form has the same bytes: for sizes before any work."""
        cheapest: Any = find(f"{self.family()}/{_CHEAPEST}")
        return cheapest(bits=self.bits, group=self.group, symmetric=self.symmetric)

    def quantize(self, weight: torch.Tensor, grid: Grid, stats: Stats, dtype: torch.dtype) -> Form:
        """Form of float32 ``weight`` (rows, columns) on ``grid``, scales stored in ``dtype``."""
        raise NotImplementedError

    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, Form]) -> Change:
        """Quantize every unit of the site."""
        forms = {}
        for unit in site.units:
            forms[unit.name] = on_dense(
                current[unit.name], stats[unit.name], lambda w, s: self.quantize(w.float(), self.grid, s, w.dtype), self.key()
            )
        return Change(forms=forms, events=[f"{u.name}: {event}" for u in site.units for event in stats[u.name].events])
