"""Float4: four-bit floats with scales of eight bits for every few columns, each weight to its nearest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from typing_extensions import override

from modicum import forms
from modicum.core.method import Change, Method, Paper
from modicum.core.settings import param
from modicum.core.unit import Site, Stats
from modicum.forms.lift import on_dense
from modicum.quantize._minifloat import code


@dataclass(frozen=True, kw_only=True)
class Float4(Method):
    """Round every weight to E2M1 under a scale for 16 columns (NVFP4: E4M3 scales) or 32 (MXFP4: powers of two).

    Of several scales each group takes the one of least squared error. NVFP4's one more scale for the whole matrix is a power of two here, almost
    always the same one, so that weights that runtimes fuse share it and every reader multiplies without rounding.

    *Shapes:* weight (rows, columns). *Needs and cost:* no data; a pass for each scale that is tried. *Reduces to:* the original weights where each
    group is E2M1 numbers times a scale of the format. *Raises:* ``SettingError`` where it comes after a step that left no dense weight.

    Example:
        >>> import torch
        >>> code(torch.tensor([[0.0, 1.0, -6.0, 3.0]]), "mxfp4", torch.float32).dense()
        tensor([[ 0.,  1., -6.,  3.]])

    """

    paper = Paper("Microscaling Data Formats for Deep Learning", "2310.10537", 2023, "Rouhani, Bita Darvish and others")

    format: str = param("nvfp4", "layout of the scales", choices=("nvfp4", "mxfp4"))

    @property
    @override
    def by_rows(self) -> bool:
        """NVFP4 has one more scale for all rows."""
        return self.format == "mxfp4"

    @override
    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, forms.Form]) -> Change:
        """Quantize every unit of the site."""
        own = lambda weight, _: code(weight.float(), self.format, weight.dtype)
        return Change(forms={u.name: on_dense(current[u.name], stats[u.name], own, self.key()) for u in site.units})
