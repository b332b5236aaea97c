"""Float8: eight-bit floats with one scale per row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from typing_extensions import override

from modicum import forms
from modicum.core.method import Change, Method, Paper
from modicum.core.unit import Site, Stats
from modicum.forms.lift import on_dense
from modicum.numerics.grid import least_scale

_TOP = torch.finfo(torch.float8_e4m3fn).max


@dataclass(frozen=True, kw_only=True)
class Float8(Method):
    """Round every weight to FP8 E4M3 under one scale per row.

    Three mantissa bits at every magnitude: coarser than eight-bit integers for weights that fill their range, kinder to rows with outliers.

    *Shapes:* weight (rows, columns), scale (rows, 1). *Needs and cost:* no data, two passes. *Reduces to:* the
    original weights where each row is E4M3 values times one scale. *Raises:* ``SettingError`` where it comes
    after a step that left no dense weight.

    Example:
        >>> import torch
        >>> str(Float8())
        'float8'

    """

    menu = ({},)
    paper = Paper("FP8 Formats for Deep Learning", "2209.05433", 2022, "Micikevicius, Paulius and others")

    @property
    @override
    def by_rows(self) -> bool:
        """Each row has a scale of its own."""
        return True

    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, forms.Form]) -> Change:
        """Quantize every unit of the site."""
        return Change(forms={u.name: on_dense(current[u.name], stats[u.name], lambda w, _: _encode(w), self.key()) for u in site.units})


def _encode(weight: torch.Tensor) -> forms.Form:
    span = torch.finfo(weight.dtype)
    scale = (weight.float().abs().amax(1, keepdim=True) / _TOP).clamp_min(least_scale(weight.dtype)).to(weight.dtype)
    # A scale that was rounded up must not carry the largest weights beyond their dtype.
    scale = torch.where(scale.double() * _TOP > span.max, scale * (1 - span.eps), scale)
    return forms.Float8((weight.float() / scale.float()).clamp(-_TOP, _TOP).to(torch.float8_e4m3fn), scale)
