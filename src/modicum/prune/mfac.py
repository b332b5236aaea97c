"""M-FAC: the inverse of a Fisher information of some gradients, never made, says which weights go and how the others make up for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from modicum.core.method import Need, Paper
from modicum.core.settings import param
from modicum.core.unit import Stats
from modicum.prune._family import Pruner
from modicum.prune.magnitude import Magnitude

# Entries of the window that are turned to float32 at a time.
_CHUNK = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Mfac(Pruner):
    """Prune by the optimal brain surgeon under the empirical Fisher information of some sequences' gradients, block by block of each row.

    With m gradients as rows of G the information of a block is ``F = λ I + Gᵀ G / m``. By Woodbury's identity its inverse needs the inverse of
    ``A = m λ I + G Gᵀ`` (m, m) alone: the score of a weight is ``w² / (F⁻¹)_ii`` with ``(F⁻¹)_ii = (1 - (Gᵀ A⁻¹ G)_ii) / λ``, and where the weights
    P go the others K move by ``G_Kᵀ (m λ I + G_K G_Kᵀ)⁻¹ G_P w_P``.

    *Shapes:* weight (rows, columns), window (m, rows, columns). *Needs and cost:* a backward pass of each of ``--gradient-samples`` sequences, whose
    gradients are kept: 2 m bytes per weight; ``m² · rows · columns`` multiply-adds, and m³ for each block. *Reduces to:* magnitude where the
    damping is large, the diagonal of the Fisher information at ``block=1``. *Raises:* ``SettingError`` for a malformed pattern. Weights whose
    gradients were not seen take ``magnitude``.

    *Differences from the paper:* all that go are made up for together, exactly, instead of by a sum of single updates; blocks lie within rows.

    Example:
        >>> import torch
        >>> from modicum.core.slopes import Slopes
        >>> window = torch.tensor([[[1.0, 1.0]]])
        >>> slopes = Slopes(1, window[0], window[0] ** 2, window)
        >>> Mfac(keep=0.5, damping=1e-6).solve(torch.tensor([[2.0, 1.0]]), Stats(slopes=slopes))[0].round()
        tensor([[3., 1.]])

    """

    paper = Paper(
        "M-FAC: Efficient Matrix-Free Approximations of Second-Order Information", "2107.03356", 2021, "Frantar, Elias and others"
    )
    needs = frozenset({Need.WINDOW})

    block: int = param(128, "columns of a row that are felt together", between=(1, 65536))
    damping: float = param(1.0, "λ as a share of the mean squared gradient", between=(1e-6, 1e6))
    update: bool = param(True, "let what remains make up for what goes")

    def without_data(self) -> Magnitude:
        """The stand-in for weights whose gradients were not seen."""
        return Magnitude(keep=self.keep, pattern=self.pattern)

    def score(self, weight: torch.Tensor, stats: Stats) -> torch.Tensor:
        """``w² / (F⁻¹)_ii``, relative to the damping."""
        rows = []
        for part, gradients, least in self._parts(weight, stats):
            root = torch.linalg.cholesky(self._gram(gradients, least))
            known = torch.linalg.solve_triangular(root, gradients.double(), upper=False).square().sum(1)
            rows.append((part.square() / (1 - known).clamp_min(1e-12)).float())
        return torch.cat(rows).reshape(len(weight), -1)[:, : weight.shape[1]]

    def solve(self, weight: torch.Tensor, stats: Stats) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight as it makes up for what goes, and the mask."""
        mask = self.mask(self.score(weight, stats), self.scope)
        if not self.update:
            return weight, mask
        moved, low = [], 0
        for part, gradients, least in self._parts(weight, stats):
            high = low + len(part)
            kept = self._blocks(mask.float())[low:high, None]
            lost = (gradients * (1 - kept)) @ part[:, :, None]
            held = gradients * kept
            moved.append((held.mT.double() @ torch.linalg.solve(self._gram(held, least), lost.double()))[..., 0].float())
            low = high
        return weight + torch.cat(moved).reshape(len(weight), -1)[:, : weight.shape[1]], mask

    def _parts(self, weight: torch.Tensor, stats: Stats) -> Iterator[tuple[torch.Tensor, torch.Tensor, float]]:
        """Some blocks at a time: of the weight (blocks, columns), of the gradients (blocks, m, columns), and λ."""
        slopes = stats.slopes
        assert slopes is not None and slopes.window is not None
        least = self.damping * float(slopes.information.mean()) or 1.0
        window, parts = slopes.window, self._blocks(weight)
        each = max(1, _CHUNK // (len(window) * parts.shape[1]))
        whole = -(-weight.shape[1] // min(self.block, weight.shape[1]))
        each = max(whole, each // whole * whole)
        for low in range(0, len(parts), each):
            rows = slice(low // whole, (low + each) // whole)
            mine = torch.stack([self._blocks(one[rows].float()) for one in window], 1)
            yield parts[low : low + each], mine, least

    def _blocks(self, matrix: torch.Tensor) -> torch.Tensor:
        """Blocks (blocks, columns) of the rows of a matrix, the last of each filled up with zeros."""
        columns = min(self.block, matrix.shape[1])
        return torch.nn.functional.pad(matrix, (0, -matrix.shape[1] % columns)).reshape(-1, columns)

    @staticmethod
    def _gram(gradients: torch.Tensor, least: float) -> torch.Tensor:
        """``m λ I + G Gᵀ`` of each block (blocks, m, m)."""
        gradients = gradients.double()
        count = gradients.shape[1]
        return gradients @ gradients.mT + count * least * torch.eye(count, dtype=torch.float64)
