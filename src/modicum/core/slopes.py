"""What gradients of single sequences say of each weight of a unit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Slopes:
    """Sums over ``count`` sequences of a loss's gradient by weight, each sequence's loss its mean over tokens.

    ``total`` and ``square`` (rows, columns) are the sums of g and of g², ``window`` (kept, rows, columns) the gradients of the last sequences
    themselves, and ``general`` (rows, columns) the mean of g² on text that the model wrote itself; each None where no method asks for it.
    """

    count: int
    total: torch.Tensor
    square: torch.Tensor
    window: torch.Tensor | None = None
    general: torch.Tensor | None = None

    @property
    def norm(self) -> torch.Tensor:
        """Euclidean norm over the sequences of each weight's gradient (rows, columns)."""
        return self.square.sqrt()

    @property
    def mean(self) -> torch.Tensor:
        """Mean gradient (rows, columns)."""
        return self.total / max(self.count, 1)

    @property
    def information(self) -> torch.Tensor:
        """Mean squared gradient (rows, columns), the diagonal of the empirical Fisher information."""
        return self.square / max(self.count, 1)

    def rows(self, kept: torch.Tensor) -> Slopes:
        """Those of some rows (a mask or places) alone."""
        return self._picked(lambda value: value[..., kept, :])

    def columns(self, kept: torch.Tensor) -> Slopes:
        """Those of some columns alone."""
        return self._picked(lambda value: value[..., kept])

    def _picked(self, pick) -> Slopes:
        given = {name: pick(value) for name in ("total", "square", "window", "general") if (value := getattr(self, name)) is not None}
        return replace(self, **given)
