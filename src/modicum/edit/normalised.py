"""Features with mean 0 and deviation 1, by what was seen so far."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Running:
    """Mean and deviation of features over everything seen so far, in constant memory."""

    count: int = 0
    mean: torch.Tensor | None = None
    squares: torch.Tensor | None = None

    def with_(self, some: torch.Tensor) -> Running:
        """The same with more rows (count, features)."""
        mean, squares, count = some.double().mean(0), (some.double() - some.double().mean(0)).square().sum(0), len(some)
        if self.mean is None or self.squares is None:
            return Running(count, mean, squares)
        total, apart = self.count + count, mean - self.mean
        return Running(total, self.mean + apart * count / total, self.squares + squares + apart.square() * self.count * count / total)

    def normalised(self, some: torch.Tensor) -> torch.Tensor:
        """Rows with mean 0 and deviation 1 in every feature."""
        assert self.mean is not None and self.squares is not None
        deviation = (self.squares / max(1, self.count - 1)).sqrt()
        return ((some.double() - self.mean) / (deviation + 1e-10)).float()


@dataclass(frozen=True)
class Statistics:
    """What normalises one layer's features: over all facts so far."""

    keys: Running = Running()
    gradients: Running = Running()
    size: float = 0.0

    def with_(self, keys: torch.Tensor, gradients: torch.Tensor) -> Statistics:
        """The same with another batch."""
        before, norm = self.keys.count, float(gradients.norm(dim=1).mean())
        size = (self.size * before + norm * len(keys)) / (before + len(keys))
        return Statistics(self.keys.with_(keys), self.gradients.with_(gradients), size)
