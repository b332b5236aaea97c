"""Bitsandbytes: NF4 and FP4 under a scale for every 64 columns, as QLoRA has them and bitsandbytes runs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from typing_extensions import override

from modicum import forms
from modicum.core.method import Change, Method, Need, Paper
from modicum.core.settings import param
from modicum.core.unit import Site, Stats
from modicum.forms.blockwise import Doubled
from modicum.forms.lift import on_dense
from modicum.numerics.blockwise import decode, doubled, encode, fit, largest, placed
from modicum.numerics.solver import slabs, solve
from modicum.quantize._factor import factored


@dataclass(frozen=True, kw_only=True)
class Bitsandbytes(Method):
    """Round to NF4 or FP4 under a scale for every 64 columns, column by column so that later columns absorb the error.

    A weight is one of sixteen levels from -1 to 1 times its group's scale, a number of 32 bits: quantiles of a normal distribution (``nf4``), or a
    sign, two bits of exponent and one of mantissa (``fp4``). With ``double`` scales have eight bits, under one more for 256 of them.
    ``rounding=gptq`` takes the scale of least squared error, columns weighted by their inputs' energy, and decides codes as ``gptq`` does;
    ``nearest`` is what bitsandbytes itself makes of the weight, to the bit but for a few scales in eight bits that it rounds otherwise.

    *Shapes:* weight (rows, columns), covariance (columns, columns). *Needs and cost:* covariance, the factorization that ``gptq`` has too, then
    rows · columns² multiply-adds; ``nearest`` needs no data and takes a few passes. *Reduces to:* scales searched for and every weight at its
    nearest level where the covariance is diagonal. *Raises:* ``SettingError`` where it comes after a step that left no dense weight; ``ModelError``
    where no damping makes the covariance positive definite. Weights whose inputs were not seen take ``nearest``.

    *Differences from the paper:* codes and scales are chosen on data; a row's last group may be shorter, blocks do not run on into the next row.

    Example:
        >>> import torch
        >>> stats = Stats(count=99, covariance=torch.eye(128))
        >>> [Bitsandbytes(double=double).code(torch.randn(8, 128), stats, torch.float32).nbytes for double in (False, True)]
        [576, 536]

    """

    paper = Paper(
        "QLoRA: Efficient Finetuning of Quantized LLMs", "2305.14314", 2023,
        "Dettmers, Tim and Pagnoni, Artidoro and Holtzman, Ari and Zettlemoyer, Luke",
    )  # fmt: skip
    needs = frozenset({Need.COVARIANCE})
    blockwise = True

    levels: str = param("nf4", "levels: quantiles of a normal distribution, or four-bit floats", choices=("nf4", "fp4"))
    double: bool = param(False, "scales of eight bits, under one of 32 for every 256")
    rounding: str = param("gptq", "column by column as inputs go together, or to the nearest level", choices=("gptq", "nearest"))
    block: int = param(64, "columns per scale", choices=(32, 64, 128, 256, 512, 1024, 2048, 4096))
    damping: float = param(0.01, "share of the covariance's mean diagonal added to its diagonal", between=(0.0, 10.0))

    @override
    def wanted(self) -> frozenset[Need]:
        return self.needs if self.rounding == "gptq" else frozenset()

    def without_data(self) -> Method:
        """The stand-in for weights whose inputs were not seen."""
        return replace(self, rounding="nearest")

    @override
    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, forms.Form]) -> Change:
        """Quantize every unit of the site."""
        own = lambda weight, seen: self.code(weight.float(), seen, weight.dtype)
        found = {u.name: on_dense(current[u.name], stats[u.name], own, self.key()) for u in site.units}
        return Change(forms=found, events=[f"{u.name}: {event}" for u in site.units for event in stats[u.name].events])

    def code(self, weight: torch.Tensor, stats: Stats, dtype: torch.dtype) -> forms.Blockwise:
        """The form of float32 ``weight`` (rows, columns)."""
        if self.rounding == "nearest":
            scale = largest(weight, self.block)
            codes = encode(placed(weight, scale, self.block), self.levels)
            return self._form(codes, doubled(scale) if self.double else scale, dtype)
        assert stats.moment is not None
        scale = fit(weight, self.levels, self.block, stats.moment.diagonal(), dtype)
        told = doubled(scale) if self.double else scale
        return self._form(self._solved(weight, told.value() if isinstance(told, Doubled) else told, stats), told, dtype)

    def _form(self, codes: torch.Tensor, scale: torch.Tensor | Doubled, dtype: torch.dtype) -> forms.Blockwise:
        return forms.Blockwise(codes, scale, self.levels, self.block, dtype)

    def _solved(self, weight: torch.Tensor, scale: torch.Tensor, stats: Stats) -> torch.Tensor:
        """Codes (rows, columns) under known scales (rows, groups), each column's error made up for by those after it."""
        order, factor = factored(stats, self.damping)
        step, codes = scale.T.contiguous(), torch.empty(weight.shape, dtype=torch.uint8)
        least = torch.finfo(torch.float32).tiny
        for rows in slabs(weight):
            made = torch.empty_like(codes[rows].T)

            def decide(k: int, column: torch.Tensor, rows: slice = rows, made: torch.Tensor = made) -> torch.Tensor:
                own = step[int(order[k]) // self.block, rows]
                made[order[k]] = encode(column / torch.where(own == 0, least, own), self.levels)
                return decode(made[order[k]], self.levels) * own

            solve(weight[rows][:, order], factor, decide)
            codes[rows] = made.T
        return codes
