"""Sums of products with inputs of their own, some of which are left out: the weights that remain make up for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from modicum.core.unit import Routed
from modicum.numerics.gram import add_gram, add_product, mirror
from modicum.numerics.groups import damped_covariance, factor
from modicum.numerics.threads import single_threaded

# Rows squared at a time.
_CHUNK = 4096
# Rounds end when one lowers what is left by less than this share of it.
_STEP = 1e-3


@dataclass(frozen=True)
class Refit:
    """Changes of weights (rows, columns) by name, and the squared error of the sum in each row (rows,) ``before`` and ``after`` them."""

    changes: dict[str, torch.Tensor]
    before: torch.Tensor
    after: torch.Tensor


class Mixture:
    """``Σ_f A_f W_fᵀ``, a block's output (tokens, rows) as the sum of its experts': each has its own tokens, and inputs A_f times routing weights.

    ``parts`` holds what each expert met, by name. Of the terms that are left out a residual R remains, which others fit in turn, by
    ``ΔW_fᵀ += (A_fᵀ A_f + λ)⁻¹ (A_fᵀ R − λ ΔW_fᵀ)`` with ``R −= A_f ΔW_fᵀ`` kept up to date: block coordinate descent on
    ``‖R‖² + Σ_f λ_f ‖ΔW_f‖²``, so that ‖R‖ never ends above where it began. λ is ``damping`` times the mean diagonal of ``A_fᵀ A_f``.

    *Needs and cost:* float32; ``admit`` is shown the residual and each factor, which may spill. One Gram matrix and factor of each expert that fits,
    once for each damping; for each of them and round ``4 met · columns · rows + 2 columns² · rows`` operations. Memory for the residual (tokens
    of those that take part, rows), one expert's inputs, and the factors. The bits do not depend on the number of threads.
    """

    def __init__(self, parts: Mapping[str, list[Routed]], admit: Callable[[torch.Tensor], None] = lambda value: None):
        self.parts, self.admit = parts, admit
        self._factors: dict[str, tuple[torch.Tensor, float]] = {}
        self._damping = 0.0

    def tokens(self, name: str) -> torch.Tensor:
        """Rows of the block's output to which a part adds (met,)."""
        return torch.cat([torch.zeros(0, dtype=torch.long), *(met.tokens for met in self.parts[name])])

    def inputs(self, name: str) -> torch.Tensor:
        """A part's inputs times its routing weights (met, columns)."""
        return torch.cat([met.inputs.float() * met.weights[:, None] for met in self.parts[name]])

    def nearest(self, name: str, among: Iterable[str], count: int) -> list[str]:
        """The parts ``among`` others, ``count`` at most, that share most tokens with the part ``name``."""
        mine = self.tokens(name)
        shared = {other: int(torch.isin(self.tokens(other), mine).sum()) for other in among}
        return sorted((other for other in shared if shared[other]), key=lambda other: -shared[other])[:count]

    def halves(self) -> tuple[Mixture, Mixture]:
        """The first half of all tokens, and the rest; nothing is copied."""
        last = max((int(met.tokens[-1]) for mine in self.parts.values() for met in mine if len(met.tokens)), default=-1)
        first: dict[str, list[Routed]] = {}
        second: dict[str, list[Routed]] = {}
        for name, mine in self.parts.items():
            cuts = [int(torch.searchsorted(met.tokens, (last + 1) // 2)) for met in mine]
            first[name] = [Routed(met.inputs[:cut], met.tokens[:cut], met.weights[:cut]) for met, cut in zip(mine, cuts)]
            second[name] = [Routed(met.inputs[cut:], met.tokens[cut:], met.weights[cut:]) for met, cut in zip(mine, cuts)]
        return Mixture(first, self.admit), Mixture(second, self.admit)

    def best_damping(
        self, lost: Mapping[str, torch.Tensor], fitting: Sequence[str], dampings: Sequence[float]
    ) -> tuple[float | None, float]:
        """Which damping, fitted to half of the tokens, leaves the least squared error on the other half, and its share of the error before; None
        and 1 where no fit is better than none.
        """
        seen, unseen = self.halves()
        best: tuple[float | None, float] = None, 1.0
        for damping in dampings:
            before, after = (float(rows.sum()) for rows in unseen.remaining(lost, seen.refit(lost, fitting, damping, 1).changes))
            if after < best[1] * before:
                best = damping, after / before
        return best

    def refit(self, lost: Mapping[str, torch.Tensor], fitting: Sequence[str], damping: float, rounds: int) -> Refit:
        """Leave out the parts ``lost``, by their weights (rows, columns), and let the parts ``fitting`` make up for them; those that met no token,
        or none of those of ``lost``, stay.
        """
        if damping != self._damping:
            self._factors, self._damping = {}, damping
        places = self._places([*lost, *fitting])
        residual = self._residual(lost, places)
        before = after = _squares(residual)
        changes: dict[str, torch.Tensor] = {}
        for _ in range(rounds):
            for name in fitting:
                self._fit(name, residual, places[name], changes)
            last, after = after, _squares(residual)
            if float(after.sum()) > (1 - _STEP) * float(last.sum()):
                break
        return Refit(changes, before, after)

    def remaining(self, lost: Mapping[str, torch.Tensor], changes: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared error of the sum in each row (rows,) without the parts ``lost``, and with the ``changes`` of others."""
        places = self._places([*lost, *changes])
        residual = self._residual(lost, places)
        before = _squares(residual)
        for name, change in changes.items():
            if len(places[name]):
                residual.index_add_(0, places[name], self.inputs(name) @ change.T, alpha=-1)
        return before, _squares(residual)

    def _fit(self, name: str, residual: torch.Tensor, places: torch.Tensor, changes: dict[str, torch.Tensor]) -> None:
        """Bring one part's change up to date with the residual."""
        met = residual[places]
        if not met.any():
            return
        inputs = self.inputs(name)
        lower, added = self._factor(name, inputs)
        wanted = torch.zeros(inputs.shape[1], met.shape[1])
        add_product(wanted, inputs, met)
        if name in changes:
            wanted -= added * changes[name].T
        with single_threaded():
            step = torch.cholesky_solve(wanted, lower)
        changes[name] = changes[name] + step.T if name in changes else step.T.contiguous()
        residual.index_add_(0, places, inputs @ step, alpha=-1)

    def _factor(self, name: str, inputs: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Lower Cholesky factor of a part's damped Gram matrix, and what was added to its diagonal."""
        if name not in self._factors:
            gram = torch.zeros(inputs.shape[1], inputs.shape[1])
            add_gram(gram, inputs)
            damped = damped_covariance(mirror(gram), self._damping)
            with single_threaded():
                lower = factor(damped, self._damping).float()
            self.admit(lower)
            self._factors[name] = lower, float(damped[0, 0] - gram[0, 0])
        return self._factors[name]

    def _places(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Where each part's tokens stand among those that any of the parts met."""
        tokens = {name: self.tokens(name) for name in names}
        _, places = torch.unique(torch.cat(list(tokens.values())), return_inverse=True)
        return dict(zip(tokens, places.split([len(mine) for mine in tokens.values()])))

    def _residual(self, lost: Mapping[str, torch.Tensor], places: Mapping[str, torch.Tensor]) -> torch.Tensor:
        count = max((int(mine.max()) + 1 for mine in places.values() if len(mine)), default=0)
        residual = torch.zeros(count, len(next(iter(lost.values()))))
        self.admit(residual)
        for name, weight in lost.items():
            if len(places[name]):
                residual.index_add_(0, places[name], self.inputs(name) @ weight.T)
        return residual


def _squares(residual: torch.Tensor) -> torch.Tensor:
    """Sum of squares of each column (rows,); on one thread, for a few long columns are split among several."""
    with single_threaded():
        return torch.stack([torch.zeros(residual.shape[1]), *(chunk.square().sum(0) for chunk in residual.split(_CHUNK))]).sum(0)
