"""GPTQ: each column is rounded, and the columns after it absorb its error."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from typing_extensions import override

from modicum.core.method import Need, Paper
from modicum.core.settings import param
from modicum.core.unit import Stats
from modicum.forms import Form
from modicum.quantize._aim import FEW
from modicum.quantize._columns import Columns
from modicum.quantize.hqq import Hqq

# The gradient's moment of a table is of few sequences, so its damping is large.
_DAMPING = 0.1


@dataclass(frozen=True, kw_only=True)
class Gptq(Columns):
    """Round column by column so that later columns absorb the error on the calibration inputs.

    Minimises ``tr((W - Q) H (W - Q)ᵀ)`` greedily, H the covariance of inputs: column k is rounded at its corrected value
    ``w_k + Σ_{j<k} (w_j - q_j) M_jk`` with ``H = M D Mᵀ`` (see ``numerics/solver.py``).

    *Shapes:* weight (rows, columns), covariance (columns, columns). *Needs and cost:* covariance; one Cholesky factorization shared by all
    units of a stage and all bits, then rows · columns² multiply-adds, and again for each sweep (see ``numerics/descent.py``); at up to 3 bits the
    original runs beside the compressed model; ``turns``, and tables, take gradients of the output. *Reduces to:* nearest rounding where the
    covariance is diagonal, ``order=none``, ``clip=1``, ``sweeps=0``, ``towards=0`` and ``turns=1``. *Raises:* ``ModelError`` where no damping makes
    the covariance positive definite. Weights whose inputs were not seen take ``hqq`` at the same bits; an embedding has, as under ``coded``, the
    second moment of the output's gradient in what is looked up for a covariance (``moment=felt``), and takes ``hqq`` where gradients were not taken.

    *Differences from the paper:* one factorization instead of an inverse and a factorization; groups are fitted to the original weights when
    columns are reordered, so that nothing but scales is stored; a group's range may be clipped to the share of least squared error under the
    covariance's diagonal, at most to ``clip``; what the columns decided is refined by coordinate descent over all codes and scales, at up to 3
    bits from two starts of which each row takes the better (of 4 bits that are written the better before it is refined; ``sweeps=0`` leaves that
    out); of more than 4 bits what is only compared with other options is not refined. At up to 3 bits codes come
    near ``W + towards · W Δ H⁻¹``, where Δ sums ``(y - x) xᵀ`` of the original's inputs y, so that a layer makes up for a part of what was lost
    before it (Arai and Ichikawa 2025, Quantization Error Propagation; ``towards=0`` leaves that out), and rows go in turns, of which later ones
    make up for earlier ones (``numerics/coupled.py``; Tseng, Sun and De Sa 2025, YAQA; which more than one of ``turns`` asks for).

    Example:
        >>> import torch
        >>> from modicum.numerics.grid import Grid
        >>> weight, stats = torch.randn(8, 64), Stats(count=99, covariance=torch.eye(64))
        >>> Gptq(bits=4, group=32).quantize(weight, Grid(4, 32), stats, torch.float32).bits
        4

    """

    paper = Paper(
        "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", "2210.17323", 2022,
        "Frantar, Elias and Ashkboos, Saleh and Hoefler, Torsten and Alistarh, Dan",
    )  # fmt: skip
    needs = frozenset({Need.COVARIANCE})
    blockwise = True
    menu = tuple({"bits": bits} for bits in range(2, 9))

    turns: int = param(1, "turns of rows of up to 3 bits, later ones making up for losses of earlier ones; 1: none do", between=(1, 64))
    moment: str = param(
        "inputs", "second moment by which columns go together: of inputs, or of the output's gradient in what is looked up in a table (felt)",
        choices=("inputs", "felt"),
    )  # fmt: skip

    @override
    def wanted(self) -> frozenset[Need]:
        """Few bits ask how inputs drifted, and how the output feels rows together."""
        if self.feels:
            return frozenset()
        more = {Need.DRIFT: self.towards, Need.FELT: self.turns > 1 and self.group >= 0}
        return self.needs | (frozenset(need for need, asked in more.items() if asked) if self.bits <= FEW else frozenset())

    @property
    @override
    def feels(self) -> bool:  # type: ignore[override]
        """Whether columns of a table make up for each other as the output feels them."""
        return self.moment == "felt"

    @property
    @override
    def tables(self) -> bool:  # type: ignore[override]
        """What multiplies inputs is solved by how these go together."""
        return self.feels

    def without_data(self) -> Hqq:
        """The stand-in for weights whose inputs were not seen."""
        return Hqq(bits=self.bits, group=self.group, symmetric=self.symmetric, scales=self.scales)

    def looked_up(self) -> Gptq:
        """The stand-in for tables where gradients are taken, without the settings that concern inputs."""
        return replace(self, moment="felt", towards=type(self).towards, turns=1)

    @override
    def _whole(self, weight: torch.Tensor, stats: Stats) -> Form:
        """That of a table as the output feels it, or by the stand-in without data where that was not seen."""
        if not self.feels:
            return super()._whole(weight, stats)
        if stats.felt is None:
            stats.events.append(f"how the output feels it was not seen, {self.without_data()} stands in for {self}")
            return self.without_data()._whole(weight, stats)
        solver = replace(self, moment="inputs", damping=max(self.damping, _DAMPING), towards=0.0, turns=1)
        return solver._whole(weight, replace(stats, covariance=stats.felt, blocks=None, drift=None))
