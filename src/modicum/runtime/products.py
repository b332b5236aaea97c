"""What forms take of the multiply-adds of one forward pass in the target's runtime: whole weights there, so that only what is cut saves any."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from modicum.core.unit import Site, Unit
from modicum.forms import Form
from modicum.runtime.runtime import Runtime
from modicum.sweep.work import Work


@dataclass(frozen=True)
class Products:
    """Prices of forms in multiply-adds of the pass that ``work`` was counted on.

    A weight of fewer bits, with zeros anywhere, or of two factors is multiplied whole once it is loaded: it takes what the original takes. What a cut
    leaves of a weight takes its share; the products between the units of a cut, such as an attention's own, go with the groups that are kept.
    Experts that are left out save the mean share of their stack. ``sites``: those whose units are chosen for.
    """

    work: Work
    runtime: Runtime
    cuts: Mapping[str, Site]
    sites: Iterable[Site]

    def of(self, unit: Unit, form: Form) -> float:
        """Multiply-adds of a unit in a form, and with a cut's consumer of what lies between the cut's units."""
        whole, between = self.work.units.get(unit.name, 0), self._between.get(unit.name, 0)
        if not whole and not between:
            return 0.0
        rows, columns = self.runtime.shape(unit, form)
        return whole * rows * columns / (unit.shape[0] * unit.shape[1]) + between * columns / unit.shape[1]

    def rest(self) -> float:
        """Those that no choice on a weight changes, blocks' own rest included."""
        return self.work.whole - sum(map(self._chosen, self._units))

    def block_rest(self, block: str) -> float:
        """The part of ``rest`` that goes with a block when it is left out."""
        return self.work.block(block) - sum(self._chosen(unit) for unit in self._units if unit.startswith(f"{block}."))

    def _chosen(self, unit: str) -> int:
        return self.work.units.get(unit, 0) + self._between.get(unit, 0)

    @cached_property
    def _units(self) -> list[str]:
        return [unit.name for site in self.sites for unit in site.units]

    @cached_property
    def _between(self) -> dict[str, int]:
        return self.work.between(self.cuts.values())
