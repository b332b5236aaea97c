"""Activations whose scale nobody has found yet: for sizes before any work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Change, Method
from modicum.core.settings import param
from modicum.core.unit import Site, Stats
from modicum.forms import Activated, Cut, Form
from modicum.forms.activated import Rounding


@dataclass(frozen=True, kw_only=True)
class Unscaled(Method):
    """What has the bytes of `Activations`, and needs no inputs."""

    wraps: ClassVar[bool] = True
    format: str = param("int8", "codes of inputs", choices=("int8", "fp8", "int4", "mxfp4", "nvfp4"))
    static: bool = param(False, "one scale for all inputs")

    @override
    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, Form]) -> Change:
        rounding = lambda form, _: Rounding(self.format, stored(torch.ones(1), self.format, form) if self.static else None)
        return Change(forms={unit.name: around(current[unit.name], rounding) for unit in site.units})


def stored(scale: torch.Tensor, format: str, form: Form) -> torch.Tensor:
    """A scale of inputs in the dtype in which it is kept: the form's, or float32 where others are told over it."""
    return scale if format == "nvfp4" else scale.to(form.dtype)


def around(form: Form, rounding: Callable[[Form, torch.Tensor | None], Rounding], columns: torch.Tensor | None = None) -> Form:
    """A form, or what remains inside a cut, whose inputs are rounded by ``rounding(form, its columns)``."""
    if isinstance(form, Cut):
        return Cut(around(form.inner, rounding, form.columns), form.rows, form.columns)
    return Activated(form, rounding(form, columns))
