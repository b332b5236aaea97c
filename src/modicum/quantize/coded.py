"""Coded: rounding to the nearest under one step, each row's codes entropy-coded for its own deviation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from typing_extensions import override

from modicum import forms
from modicum.core.method import Change, Method, Paper
from modicum.core.settings import param
from modicum.core.unit import Site, Stats
from modicum.forms.lift import on_dense
from modicum.numerics.coding import coded


@dataclass(frozen=True, kw_only=True)
class Coded(Method):
    """Round every weight under one step for all, and code the whole numbers near their entropy in a stream of settled size.

    At equal squared error an entropy coder on one uniform step takes fewer bits than any grid of equally many levels per group: large weights are
    rare, and pay for themselves. The step is the finest that the stream has room for, within half a percent.

    *Shapes:* weight (rows, columns). *Needs and cost:* no data; a few roundings of all weights, and coding. *Reduces to:* ``nearest``
    on one scale per tensor, in other bytes. *Raises:* ``SettingError`` where it comes after a step that left no dense weight.

    Example:
        >>> import torch
        >>> str(Coded(rate=2.5))
        'coded rate=2.5'

    """

    paper = Paper("Optimum Quantizer Performance for a Class of Non-Gaussian Memoryless Sources", "", 1984,
                  "Farvardin, Nariman and Modestino, James W.")  # fmt: skip

    rate: float = param(3.0, "bits per weight, all that is stored included", between=(1.0, 6.0), dial=True)

    @override
    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, forms.Form]) -> Change:
        """Code every unit of the site."""
        code = lambda weight, _: coded(weight.float(), [self.rate], weight.dtype)[0]
        return Change(forms={u.name: on_dense(current[u.name], stats[u.name], code, self.key()) for u in site.units})
