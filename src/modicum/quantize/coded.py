"""Coded: rounding under one step for all, each row's codes entropy-coded for its own deviation; a table's where the output feels it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from typing_extensions import override

from modicum import forms
from modicum.core.method import Change, Method, Paper
from modicum.core.settings import param
from modicum.core.unit import Site, Stats
from modicum.forms.lift import on_dense
from modicum.numerics.coding import coded
from modicum.numerics.exponents import raised_by
from modicum.quantize._stream import settled, solved, with_those_ahead

# A gradient's moment is of few sequences, so its damping is large; and so are frequencies, so steps fall with their eighth root alone.
_DAMPING, _ROOT = 0.1, 0.125


@dataclass(frozen=True, kw_only=True)
class Coded(Method):
    """Round every weight under one step for all, and code the whole numbers near their entropy in a stream of settled size.

    At equal squared error an entropy coder on one uniform step takes fewer bits than any grid of equally many levels per group: large weights are
    rare, and pay for themselves. The step is the finest that the stream has room for, within half a percent.

    An embedding has no inputs that could be measured, but gradients: what is looked up is felt by their second moment G. Where they were taken,
    its error ``Σ_e n_e (w_e - q_e) G (w_e - q_e)ᵀ`` is made small as ``watersic`` does with the covariance of inputs: columns absorb the errors
    of those before them. Entries that were looked up often (n) take somewhat finer steps; those of a table that is the head too, the steps that
    suit its rows there.

    *Shapes:* weight (rows, columns). *Needs and cost:* no data; a few roundings of all weights, and coding. *Reduces to:* ``nearest``
    on one scale per tensor, in other bytes. *Raises:* ``SettingError`` where it comes after a step that left no dense weight.

    Example:
        >>> import torch
        >>> str(Coded(rate=2.5))
        'coded rate=2.5'

    """

    paper = Paper("Optimum Quantizer Performance for a Class of Non-Gaussian Memoryless Sources", "", 1984,
                  "Farvardin, Nariman and Modestino, James W.")  # fmt: skip
    feels = True
    known_gaps: ClassVar[dict[str, str]] = {"permuted rows permute the answer": "on a path a code decides on which grid those below it are"}

    rate: float = param(3.0, "bits per weight, all that is stored included", between=(1.0, 6.0), dial=True)
    paths: bool = param(True, "up to four bits, take of each column the best path through a trellis of two grids")

    def blueprint(self) -> Method:
        """A method whose form has the same bytes: for sizes before any work."""
        return replace(self, paths=False)

    @override
    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, forms.Form]) -> Change:
        """Code every unit of the site."""
        made = {}
        for unit in site.units:
            own = replace(self, paths=False) if unit.pruned else self  # on a path the codes after one that is made zero would change
            code = lambda weight, seen, own=own: own.code(weight.float(), seen, weight.dtype)
            made[unit.name] = on_dense(current[unit.name], stats[unit.name], code, self.key())
        return Change(forms=made, events=[f"{u.name}: {event}" for u in site.units for event in stats[u.name].events])

    def code(self, weight: torch.Tensor, stats: Stats, dtype: torch.dtype) -> forms.Form:
        """The form of float32 ``weight`` (rows, columns)."""
        if stats.felt is None or stats.frequency is None or stats.frequency.shape != weight.shape[:1]:
            return coded(weight, [settled(self.rate, stats, self.paths)], dtype, paths=self.paths and not stats.ahead)[0]
        # What was not met in calibration will be met later.
        seen = replace(stats, covariance=stats.felt)
        raised = raised_by(stats.frequency + 1, 0.0, _ROOT) if stats.raised is None else stats.raised
        make = lambda steps: solved(steps, weight, seen, dtype, _DAMPING, raised, self.paths)
        alike = lambda other: isinstance(other, Coded) and other.paths == self.paths
        return with_those_ahead(self, weight, stats, alike, make)
