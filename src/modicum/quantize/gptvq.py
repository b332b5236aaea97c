"""GPTVQ: vectors of columns take entries of codebooks, and the columns after them absorb their error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from typing_extensions import override

from modicum import forms
from modicum.core.blocks import Blocks
from modicum.core.method import Need, Paper
from modicum.core.settings import param
from modicum.core.unit import Stats
from modicum.numerics.codebook import begun, nearest
from modicum.numerics.codebook_descent import Descent
from modicum.numerics.solver import BlockFactor, Factor, metric, slabs, solve
from modicum.quantize._aim import FEW, aimed
from modicum.quantize._codebook import Quantizer
from modicum.quantize._factor import factored
from modicum.quantize.kmeans import Kmeans


@dataclass(frozen=True, kw_only=True)
class Gptvq(Quantizer):
    """Code ``dimension`` columns at a time by the entries of codebooks, so that later columns absorb the error on the calibration inputs.

    Codebooks come from k-means, each column counted by what others leave of its energy. Then vectors are decided in turn as ``gptq`` decides
    columns: each takes the entry that costs least once all later columns make up for it, ``(c - q) A (c - q)ᵀ`` with A from the factorization
    ``H = M D Mᵀ`` of the covariance. Then entries, scales of rows and codes move to their best in turn (``numerics/codebook_descent.py``).
    With several ``stages`` an entry of each codebook is added, as in AQLM (Egiazarian and others, 2024), found with a beam.

    *Shapes:* weight (rows, columns), covariance (columns, columns). *Needs and cost:* covariance; the factorization that ``gptq`` has too, rows ·
    columns² multiply-adds, nine times as many in each of ``rounds``, and rows · columns · 2^bits in each too; at up to 3 bits a weight the original
    runs beside the compressed model. *Reduces to:* ``kmeans`` where the covariance is a multiple of the identity and ``rounds=0``. *Raises:*
    ``SettingError`` where codebooks take as much as the weight; ``ModelError`` where no damping makes the covariance positive definite. Weights
    whose inputs were not seen take ``kmeans``.

    *Differences from the paper:* the whole metric of a vector decides, not its diagonal; entries are solved for, not stepped towards; each row has
    a scale, not each block; codebooks are neither decomposed nor in eight bits.

    Example:
        >>> import torch
        >>> stats = Stats(count=99, covariance=torch.eye(64))
        >>> Gptvq(bits=4, dimension=2).code(torch.randn(8, 64), stats, torch.float32).nbytes
        224

    """

    paper = Paper(
        "GPTVQ: The Blessing of Dimensionality for LLM Quantization", "2402.15319", 2024,
        "van Baalen, Mart and Kuzmin, Andrey and Nagel, Markus and Couperus, Peter and others",
    )  # fmt: skip
    needs = frozenset({Need.COVARIANCE})
    blockwise = True

    rounds: int = param(3, "times that all entries, scales and codes are moved to their best in turn", between=(0, 100))
    towards: float = param(0.5, "how far codes of up to 3 bits make up for what was lost before: 1 as well as they can", between=(0.0, 1.0))
    damping: float = param(0.01, "share of the covariance's mean diagonal added to its diagonal", between=(0.0, 10.0))

    @override
    def wanted(self) -> frozenset[Need]:
        """Few bits ask how inputs drifted."""
        few = self.bits * self.stages <= FEW * self.dimension
        return self.needs | (frozenset({Need.DRIFT}) if self.towards and few else frozenset())

    def without_data(self) -> Kmeans:
        """The stand-in for weights whose inputs were not seen."""
        return Kmeans(bits=self.bits, dimension=self.dimension, stages=self.stages, columns=self.columns)

    @override
    def code(self, weight: torch.Tensor, stats: Stats, dtype: torch.dtype) -> forms.Codebook:
        """The form of float32 ``weight`` (rows, columns); a last vector that is not whole keeps columns as they stand."""
        assert stats.moment is not None
        weight, wide = aimed(self, weight, stats), self.dimension
        whole = weight.shape[1] % wide == 0 and not isinstance(stats.moment, Blocks)
        order, factor = factored(stats, self.damping, "static" if whole else "none", group=wide, lot=wide if whole else 1)
        left = torch.empty_like(factor.curvature)
        left[order] = factor.curvature
        form = begun(weight, left, self.layout, dtype)
        codes = torch.cat([_decided(weight[rows], form, form.scale[rows].float(), order, factor) for rows in slabs(weight)])
        moment = stats.moment.aligned(wide) if isinstance(stats.moment, Blocks) else stats.moment
        return Descent(weight, form.with_codes(codes), moment, factor.damping).refined(self.rounds)


def _decided(
    weight: torch.Tensor, form: forms.Codebook, scale: torch.Tensor, order: torch.Tensor, factor: Factor | BlockFactor
) -> torch.Tensor:
    """Codes (rows, stages, vectors) of rows of a weight, vectors decided in turn, on the entries of ``form`` times ``scale`` (rows, 1)."""
    columns, layout = order.tolist(), form.layout
    tables, groups = form.tables.float(), layout.groups(weight.shape[1]).tolist()
    codes = torch.empty(len(weight), layout.stages, len(groups), dtype=torch.uint8)
    chosen = torch.empty_like(weight.T)

    def prepare(low: int, high: int, best: torch.Tensor) -> None:
        vector = columns[low] // layout.dimension
        table = tables[groups[vector], :, :, : high - low]
        codes[:, :, vector], entry = nearest(best.T / scale, table, metric(factor, low, high))
        chosen[low:high] = (entry * scale).T

    solve(weight[:, order], factor, lambda k, _: chosen[k], span=layout.dimension, prepare=prepare)
    return codes
