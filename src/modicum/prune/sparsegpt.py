"""SparseGPT: weights go where the others can make up for them, and the others do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from typing_extensions import override

from modicum.core.blocks import Blocks
from modicum.core.method import Need, Paper
from modicum.core.settings import param
from modicum.core.unit import Stats
from modicum.forms import Form, Masked
from modicum.numerics.drift import towards
from modicum.numerics.refining import refined
from modicum.numerics.solver import BlockFactor, Factor, factorize, solve
from modicum.prune._family import Pruner
from modicum.prune.magnitude import Magnitude


@dataclass(frozen=True, kw_only=True)
class Sparsegpt(Pruner):
    """Prune block by block of columns; the columns after absorb the error on the calibration inputs.

    The score of an entry is ``c_ij² · D_j``, its corrected value squared times the curvature that remains; the correction is the
    solver's (``numerics/solver.py``), shared with GPTQ. Once all masks are chosen, what remains is refined (``numerics/refining.py``).

    *Shapes:* weight (rows, columns), covariance (columns, columns). *Needs and cost:* covariance; one Cholesky factorization, then rows ·
    columns² multiply-adds, and some fourteen times as many for each ``refit``; with ``towards`` the original runs beside. *Reduces to:*
    Wanda's masks on whole blocks where the covariance is diagonal and ``damping=0`` (up to the scope). *Raises:*
    ``ModelError`` where no damping makes the covariance positive definite. Weights whose inputs were not seen take ``magnitude``.

    *Differences from the paper:* a column makes up for earlier ones alone there; here what remains moves once more to the least error under the
    whole mask (``refit=0`` leaves that out; Boža 2024, Fast and Effective Weight Update for Pruned LLMs), and comes near ``W + towards · W Δ H⁻¹``
    as codes of ``gptq`` do.

    Example:
        >>> import torch
        >>> stats = Stats(count=99, covariance=torch.eye(64))
        >>> Sparsegpt(keep=0.25).solve(torch.randn(8, 64), stats)[1].float().mean()
        tensor(0.2500)

    """

    paper = Paper(
        "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", "2301.00774", 2023, "Frantar, Elias and Alistarh, Dan"
    )
    needs = frozenset({Need.COVARIANCE})
    blockwise = True
    held = 64
    menu = ({"keep": 0.5},)

    damping: float = param(0.01, "share of the covariance's mean diagonal added to its diagonal", between=(0.0, 10.0))
    block: int = param(128, "columns whose mask is chosen together where no pattern is given", between=(1, 4096))
    refit: int = param(1, "times that what remains is taken once more towards its best under the whole mask", between=(0, 1000))
    towards: float = param(0.5, "how far weights make up for what was lost before: 1 as well as they can", between=(0.0, 1.0))

    @override
    def wanted(self) -> frozenset[Need]:
        return self.needs | (frozenset({Need.DRIFT}) if self.towards else frozenset())

    def without_data(self) -> Magnitude:
        """The stand-in for weights whose inputs were not seen."""
        return Magnitude(keep=self.keep, pattern=self.pattern)

    def target(self, weight: torch.Tensor, stats: Stats) -> torch.Tensor:
        """What makes up for a share of how the inputs drifted, where that was seen."""
        if stats.drift is None or not self.towards:
            return weight
        factor = self._factor(stats)
        assert isinstance(factor, Factor)
        return towards(weight, stats.drift, torch.arange(weight.shape[1]), factor, self.towards)

    def solve(self, weight: torch.Tensor, stats: Stats) -> tuple[torch.Tensor, torch.Tensor]:
        """Solve on the covariance of inputs."""
        factor, span = self._factor(stats), self._span
        if factor.retries:
            stats.events.append(f"damping raised {factor.retries} times to {factor.damping:g}")
        mask = torch.ones(weight.shape[1], weight.shape[0], dtype=torch.bool)

        def choose(low: int, high: int, corrected: torch.Tensor) -> None:
            # The root of the score: the same order, and neither very large nor very small weights leave the range of float32.
            scores = corrected.abs() * factor.curvature[low:high, None].sqrt()
            mask[low:high] = self.mask(scores.T, "tensor").T

        value, _ = solve(weight, factor, lambda k, column: column * mask[k], span=span, prepare=choose)
        return value, mask.T

    @override
    def _prune(self, weight: torch.Tensor, stats: Stats) -> Form:
        assert stats.moment is not None
        target = self.target(weight.float(), stats)
        value, mask = self.solve(target, stats)
        form = Masked.of(value.to(weight.dtype), mask)
        return refined(form, target, stats.moment, self._factor(stats).damping, self.refit) if self.refit else form

    @property
    def _span(self) -> int:
        """Columns whose mask is chosen together."""
        return self.n_of_m()[1] if self.pattern is not None else self.block

    def _factor(self, stats: Stats) -> Factor | BlockFactor:
        """The factorization of the covariance, its columns as they stand."""
        assert stats.moment is not None
        moment = stats.moment.aligned(self._span) if isinstance(stats.moment, Blocks) else stats.moment
        key = ("sparsegpt", self.damping, self._span if moment is not stats.moment else 1)
        if key not in stats.cache:
            stats.cache[key] = factorize(moment, self.damping)
        return stats.cache[key]
