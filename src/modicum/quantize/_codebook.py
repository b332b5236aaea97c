"""Settings that methods with codebooks share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from typing_extensions import override

from modicum import forms
from modicum.core.errors import SettingError
from modicum.core.method import Change, Method, find
from modicum.core.settings import param
from modicum.core.unit import Site, Stats
from modicum.forms.codebook import Vectors
from modicum.forms.lift import on_dense

# The method that takes the least work for its codes.
_CHEAPEST = "kmeans"


@dataclass(frozen=True, kw_only=True)
class Quantizer(Method):
    """Settings of the codebooks that a weight is laid on: ``bits · stages / dimension`` bits a weight beside tables and scales of rows."""

    bits: int = param(6, "bits of an index", between=(1, 8), dial=True)
    dimension: int = param(2, "neighbouring columns that one index stands for", between=(1, 16))
    stages: int = param(1, "codebooks, an entry of each of which is added", between=(1, 4))
    columns: int = param(0, "columns that share their codebooks, whole vectors of them; 0: all", between=(0, 1 << 20))

    @override
    def __post_init__(self) -> None:
        """Refuse columns that cut a vector."""
        super().__post_init__()
        if self.columns % self.dimension:
            near = self.columns // self.dimension * self.dimension or self.dimension
            raise SettingError(f"{self.key()}: columns must be a multiple of dimension {self.dimension}, is {self.columns}. Take {near}.")

    @property
    def layout(self) -> Vectors:
        """What the codebooks are like."""
        return Vectors(self.bits, self.dimension, self.stages, self.columns)

    def blueprint(self) -> Method:
        """The cheapest method, whose form has the same bytes: for sizes before any work."""
        return find(f"{self.family()}/{_CHEAPEST}")(bits=self.bits, dimension=self.dimension, stages=self.stages, columns=self.columns)  # type: ignore[call-arg]

    @override
    def saves(self, site: Site) -> bool:
        """Codebooks are smaller than each weight that they stand for."""
        return not any(self.excess(unit.name, unit.shape[1], unit.dense_bytes) for unit in site.units)

    def excess(self, name: str, columns: int, most: int) -> str:
        """Why codebooks cannot stand for a weight of so many ``columns`` and bytes, and what to do; nothing where they can."""
        if (taken := self.layout.table_bytes(columns)) < most:
            return ""
        sides = "×".join(map(str, self.layout.tables(columns)))
        return (
            f"{name}: codebooks must be smaller than the weight, {sides} numbers take {taken} bytes and it has {most}. "
            f"Take fewer bits, a smaller dimension or fewer stages, or leave it as it is."
        )

    @override
    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, forms.Form]) -> Change:
        """Code every unit of the site. Raises ``SettingError`` where codebooks take as much as a weight."""
        made = {}
        for unit in site.units:
            own = lambda weight, seen, unit=unit: self.code(self._worth_it(weight, unit.name).float(), seen, weight.dtype)
            made[unit.name] = on_dense(current[unit.name], stats[unit.name], own, self.key())
        return Change(forms=made, events=[f"{u.name}: {event}" for u in site.units for event in stats[u.name].events])

    def _worth_it(self, weight: torch.Tensor, name: str) -> torch.Tensor:
        """The weight, where codebooks are smaller than it; a row of zeros may stand for all where sizes are asked."""
        if bool(weight.any()) and (why := self.excess(name, weight.shape[1], weight.nbytes)):
            raise SettingError(why)
        return weight

    def code(self, weight: torch.Tensor, stats: Stats, dtype: torch.dtype) -> forms.Codebook:
        """The form of float32 ``weight`` (rows, columns)."""
        raise NotImplementedError
