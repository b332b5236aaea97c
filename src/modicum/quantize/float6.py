"""Float6: six-bit floats with scales of eight bits for every few columns, each weight to its nearest."""

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
class Float6(Method):
    """Round every weight to six bits, E2M3 or E3M2, under a power of two for every 32 columns (MXFP6).

    Four significant bits over an eighth to 7.5 or three over a sixteenth to 28: between four bits and eight in bytes as in what is lost. Of three
    powers each group takes the one of least squared error.

    *Shapes:* weight (rows, columns). *Needs and cost:* no data; a pass for each scale that is tried. *Reduces to:* the original weights where each
    group is numbers of the format times a power of two. *Raises:* ``SettingError`` where it comes after a step that left no dense weight.

    Example:
        >>> import torch
        >>> code(torch.tensor([[0.0, 1.125, -7.5, 3.25]]), "mxfp6_e2m3", torch.float32).dense()
        tensor([[ 0.0000,  1.1250, -7.5000,  3.2500]])

    """

    paper = Paper("Microscaling Data Formats for Deep Learning", "2310.10537", 2023, "Rouhani, Bita Darvish and others")

    format: str = param("mxfp6_e2m3", "bits of exponent and mantissa", choices=("mxfp6_e2m3", "mxfp6_e3m2"))

    @property
    @override
    def by_rows(self) -> bool:
        """Each row has scales of its own."""
        return True

    @override
    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, forms.Form]) -> Change:
        """Quantize every unit of the site."""
        own = lambda weight, _: code(weight.float(), self.format, weight.dtype)
        return Change(forms={u.name: on_dense(current[u.name], stats[u.name], own, self.key()) for u in site.units})
