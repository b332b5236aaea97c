"""The quantize family: every unit of a site gets codes on an integer grid; a method only decides which codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from typing_extensions import override

from modicum.core.errors import SettingError
from modicum.core.method import Change, Method, Need, find
from modicum.core.settings import param
from modicum.core.unit import Site, Stats
from modicum.forms import Form, Integer
from modicum.forms.lift import on_dense
from modicum.numerics.grid import Grid
from modicum.numerics.nested import nested

# The method that takes the least work for its codes, and bits of a scale that is stored as it is.
_CHEAPEST, _PLAIN = "nearest", 16


@dataclass(frozen=True, kw_only=True)
class Quantizer(Method):
    """Settings of the grid that all integer quantizers share; a weight whose rows are no longer than ``group`` keeps 16-bit ``scales``."""

    bits: int = param(4, "bits per code", between=(2, 8), dial=True)
    group: int = param(64, "columns per scale; 0: one scale per row, -1: one per tensor", between=(-1, 1 << 20))
    symmetric: bool = param(False, "grid symmetric around zero, without zero points")
    scales: int = param(
        16,
        "bits of a group's scale: under 16 a whole number under one scale a row; 16 where a row is no longer than group",
        choices=(4, 6, 8, 16),
    )

    @override
    def __post_init__(self) -> None:
        """Raise ``SettingError`` for scales in few bits where no row has several."""
        super().__post_init__()
        if self.scales < _PLAIN and self.group <= 0:
            one = "row" if self.group == 0 else "tensor"
            raise SettingError(
                f"{self.key().rpartition('/')[2]}: scales must be {_PLAIN} where a {one} has one scale (group={self.group}), is {self.scales}. "
                "Leave scales out, or pass a group of at least 1."
            )

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
        return cheapest(bits=self.bits, group=self.group, symmetric=self.symmetric, scales=self.scales)

    def target(self, weight: torch.Tensor, stats: Stats) -> torch.Tensor:
        """What codes of float32 ``weight`` come near."""
        return weight

    def _whole(self, weight: torch.Tensor, stats: Stats) -> Form:
        """The form, its scales in fewer bits where that is asked for and there are several to a row."""
        form = self.quantize(weight.float(), self.grid, stats, weight.dtype)
        if self.scales == _PLAIN or not isinstance(form, Integer) or not 0 < form.group < weight.shape[1]:
            return form
        moment = stats.moment if Need.COVARIANCE in self.needs else None
        return nested(form, self.target(weight.float(), stats), self.scales, moment, getattr(self, "damping", 0.01))

    def quantize(self, weight: torch.Tensor, grid: Grid, stats: Stats, dtype: torch.dtype) -> Form:
        """Form of float32 ``weight`` (rows, columns) on ``grid``, scales stored in ``dtype``."""
        raise NotImplementedError

    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, Form]) -> Change:
        """Quantize every unit of the site."""
        forms = {u.name: on_dense(current[u.name], stats[u.name], self._whole, self.key()) for u in site.units}
        return Change(forms=forms, events=[f"{u.name}: {event}" for u in site.units for event in stats[u.name].events])
