"""Half: half the bytes of a float32 weight, and next to none of its digits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from typing_extensions import override

from modicum import forms
from modicum.core.method import Change, Method
from modicum.core.unit import Site, Stats
from modicum.forms.lift import on_dense
from modicum.numerics.grid import least_scale


@dataclass(frozen=True, kw_only=True)
class Half(Method):
    """Round every weight to half precision, each row scaled to its range.

    Eleven significant bits at every magnitude: for the few weights of a float32 model that eight bits hurt and that keeping would cost four
    bytes each. The scale keeps rows of any magnitude within the narrow range of float16.

    *Shapes:* weight (rows, columns), scale (rows, 1). *Needs and cost:* no data, two passes. *Reduces to:* the original weights where each row
    is float16 values times one scale. *Raises:* ``SettingError`` where it comes after a step that left no dense weight.

    Example:
        >>> import torch
        >>> str(Half())
        'half'

    """

    menu = ({},)

    @property
    @override
    def by_rows(self) -> bool:
        """Each row has a scale of its own."""
        return True

    @override
    def saves(self, site: Site) -> bool:
        """Weights of two bytes would only gain a scale."""
        return all(unit.dtype.itemsize > torch.float16.itemsize for unit in site.units)

    @override
    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, forms.Form]) -> Change:
        """Round every unit of the site."""
        return Change(forms={u.name: on_dense(current[u.name], stats[u.name], lambda w, _: _encode(w), self.key()) for u in site.units})


def _encode(weight: torch.Tensor) -> forms.Form:
    # The largest becomes one or a little less: far from both ends of float16, and no scale exceeds its row.
    wide = weight if weight.dtype == torch.float64 else weight.float()
    scale = wide.abs().amax(1, keepdim=True).clamp_min(least_scale(weight.dtype)).to(weight.dtype)
    return forms.Half((wide / scale.to(wide.dtype)).to(torch.float16), scale)
