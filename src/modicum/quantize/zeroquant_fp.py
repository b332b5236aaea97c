"""ZeroQuant-FP: four-bit floats whose errors later columns absorb."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from typing_extensions import override

from modicum import forms
from modicum.core.method import Change, Method, Need, Paper, find
from modicum.core.settings import param
from modicum.core.unit import Site, Stats
from modicum.forms.lift import on_dense
from modicum.forms.minifloat import LAYOUTS
from modicum.numerics.minifloat import encode, fit
from modicum.numerics.solver import slabs, solve
from modicum.quantize._factor import factored
from modicum.quantize._minifloat import form_of


@dataclass(frozen=True, kw_only=True)
class ZeroquantFp(Method):
    """Round column by column to floats of four or six bits, as ``gptq`` does to whole ones: later columns absorb an error on the inputs.

    Its low-rank compensation is a step of its own: ``zeroquant_fp | eora rank=8 whiten=false``.

    *Shapes:* weight (rows, columns), covariance (columns, columns). *Needs and cost:* covariance; the factorization that ``gptq`` has too, then
    rows · columns² multiply-adds. *Reduces to:* ``float4`` with scales weighed by the inputs where the covariance is diagonal. *Raises:*
    ``ModelError`` where no damping makes the covariance positive definite. Weights whose inputs were not seen take ``float4``.

    *Differences from the paper:* its scales are powers of two for each 32 columns (``format=mxfp4``) or have four significant bits for each 16; six
    bits (``mxfp6_e2m3``, ``mxfp6_e3m2``) are ours; weights alone are rounded, activations are not.

    Example:
        >>> import torch
        >>> stats = Stats(count=99, covariance=torch.eye(64))
        >>> ZeroquantFp(format="nvfp4").code(torch.randn(8, 64), stats, torch.float32).nbytes
        288

    """

    paper = Paper(
        "ZeroQuant-FP: A Leap Forward in LLMs Post-Training W4A8 Quantization Using Floating-Point Formats", "2307.09782", 2023,
        "Wu, Xiaoxia and Yao, Zhewei and He, Yuxiong",
    )  # fmt: skip
    needs = frozenset({Need.COVARIANCE})
    blockwise = True

    format: str = param("nvfp4", "layout of the scales", choices=("nvfp4", "mxfp4", "mxfp6_e2m3", "mxfp6_e3m2"))
    damping: float = param(0.01, "share of the covariance's mean diagonal added to its diagonal", between=(0.0, 10.0))

    def without_data(self) -> Method:
        """The stand-in for weights whose inputs were not seen."""
        nearest: Any = find(f"{self.family()}/float{LAYOUTS[self.format].bits}")
        return nearest(format=self.format)

    def blueprint(self) -> Method:
        """A method whose form has the same bytes: for sizes before any work."""
        return self.without_data()

    @override
    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, forms.Form]) -> Change:
        """Quantize every unit of the site."""
        own = lambda weight, seen: self.code(weight.float(), seen, weight.dtype)
        found = {u.name: on_dense(current[u.name], stats[u.name], own, self.key()) for u in site.units}
        return Change(forms=found, events=[f"{u.name}: {event}" for u in site.units for event in stats[u.name].events])

    def code(self, weight: torch.Tensor, stats: Stats, dtype: torch.dtype) -> forms.Minifloat:
        """The form of float32 ``weight`` (rows, columns)."""
        assert stats.moment is not None
        layout = LAYOUTS[self.format]
        order, factor = factored(stats, self.damping)
        scale, shift = fit(weight, layout, dtype, stats.moment.diagonal())
        step, codes = layout.value(scale, shift).T.contiguous(), torch.empty(weight.shape, dtype=torch.uint8)
        for rows in slabs(weight):
            made = torch.empty_like(codes[rows].T)

            def decide(k: int, column: torch.Tensor, rows: slice = rows, made: torch.Tensor = made) -> torch.Tensor:
                own = step[int(order[k]) // layout.group, rows]
                made[order[k]] = encode(column / own.clamp_min(torch.finfo(torch.float32).tiny), layout)
                return layout.decode(made[order[k]]) * own

            solve(weight[rows][:, order], factor, decide)
            codes[rows] = made.T
        return form_of(codes, scale, self.format, shift, dtype)
