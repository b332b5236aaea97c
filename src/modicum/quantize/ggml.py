"""Ggml: blocks as llama.cpp stores them, a scale for every few columns and a step for all scales of a block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from typing_extensions import override

from modicum import forms
from modicum.core.errors import SettingError
from modicum.core.ggml import TYPES, fitting
from modicum.core.method import Change, Method
from modicum.core.settings import param
from modicum.core.unit import Site, Stats
from modicum.forms.lift import on_dense
from modicum.numerics.ggml import encode


@dataclass(frozen=True, kw_only=True)
class Ggml(Method):
    """Round to blocks of a type that llama.cpp runs.

    ``scale · q - minimum``, for every 16 or 32 columns, where scales and minima are whole numbers under a step for each block of 256; types
    without minima have levels on both sides of zero.

    *Shapes:* weight (rows, columns), columns whole blocks of the type. *Needs and cost:* no data, a few passes over the weight. *Reduces to:* the
    original weights where they are such numbers. *Raises:* ``SettingError`` where blocks do not fill a row, and where it comes after a step that
    left no dense weight.

    Example:
        >>> import torch
        >>> Ggml(type="q4_k").code(torch.randn(8, 256), torch.float32).nbytes
        1152

    """

    menu = tuple({"type": type} for type in ("q2_k", "q3_k", "iq4_xs", "q4_k", "iq4_nl", "q5_k", "q5_0", "q6_k", "q8_0"))
    runtime = "gguf"

    type: str = param(
        "q8_0", "how a block is stored: its bits, and what scales it has",
        choices=("q2_k", "q3_k", "iq4_xs", "q4_k", "iq4_nl", "q4_0", "q4_1", "q5_k", "q5_0", "q5_1", "q6_k", "q8_0"), dial=True,
    )  # fmt: skip

    @property
    @override
    def by_rows(self) -> bool:
        """Blocks do not leave their row."""
        return True

    @override
    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, forms.Form]) -> Change:
        """Quantize every unit of the site."""
        own = lambda weight, _: self.code(weight.float(), weight.dtype)
        return Change(forms={u.name: on_dense(current[u.name], stats[u.name], own, self.key()) for u in site.units})

    def code(self, weight: torch.Tensor, dtype: torch.dtype) -> forms.Ggml:
        """The form of float32 ``weight`` (rows, columns)."""
        columns = weight.shape[1]
        if columns % TYPES[self.type].columns:
            others = ", ".join(f"type={name}" for name in fitting(columns))
            raise SettingError(
                f"{self.key()} type={self.type}: rows must be whole blocks of {TYPES[self.type].columns} columns, have {columns}. "
                + (f"Choose {others}." if others else "Choose another method for them.")
            )
        return forms.Ggml(encode(weight, self.type), self.type, (len(weight), columns), dtype)
