"""MeZO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.estimator import Estimator
from modicum.core.method import Paper
from modicum.core.settings import param


@dataclass(frozen=True, kw_only=True)
class Mezo(Estimator):
    """The gradient is estimated along random directions, from the loss a little ahead and a little behind: memory is that of using a model.

    ``(L(w + εz) - L(w - εz)) / 2ε · z`` with a normal z that is drawn again from its seed whenever it is needed, averaged over directions.

    *Shapes:* z is as what is trained.

    *Needs and cost:* 2 · directions losses per update and no backward pass; no activations are kept.

    *Reduces to:* gradient descent in the mean over directions, as ε goes to zero.

    *Raises:* nothing of its own.

    *Differences from the paper:* the estimate is what the loop's optimizer is given, AdamW as everywhere; what was there is put back to the bit
    instead of by subtraction. Behind ``fish keep=0.001`` over a quantized model it is sensitive sparse zeroth-order fine-tuning.

    Example:
        >>> str(Mezo(directions=4))
        'mezo directions=4'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Fine-Tuning Language Models with Just Forward Passes",
        arxiv="2305.17333",
        year=2023,
        authors="Sadhika Malladi and Tianyu Gao and Eshaan Nichani and Alex Damian and Jason D. Lee and Danqi Chen and Sanjeev Arora",
    )

    epsilon: float = param(1e-3, "how far ahead and behind losses are taken", between=(1e-9, 1e3))
    directions: int = param(1, "directions that an estimate is averaged over", between=(1, 10**6))

    @override
    def estimate(self, loss: Callable[[], float], parameters: Sequence[torch.Tensor], seed: int) -> float:
        """Two losses per direction."""
        total, there = 0.0, [parameter.detach().clone() for parameter in parameters]
        for direction in range(self.directions):
            found = []
            for sign in (1, -1):
                for parameter, old, z in zip(parameters, there, self._drawn(parameters, seed, direction)):
                    parameter.data.copy_(old + sign * self.epsilon * z)
                found.append(loss())
            slope = (found[0] - found[1]) / (2 * self.epsilon * self.directions)
            for parameter, old, z in zip(parameters, there, self._drawn(parameters, seed, direction)):
                parameter.data.copy_(old)
                parameter.grad = slope * z if parameter.grad is None else parameter.grad.add_(z, alpha=slope)
            total += sum(found) / (2 * self.directions)
        return total

    def _drawn(self, parameters: Sequence[torch.Tensor], seed: int, direction: int):
        chance = torch.Generator().manual_seed((seed + direction * 0x9E3779B97F4A7C15) % 2**63)
        for parameter in parameters:
            yield torch.randn(parameter.shape, generator=chance).to(parameter)
