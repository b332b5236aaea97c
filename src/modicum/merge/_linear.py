"""What merges have in common whose result is a sum of the models by coefficients that are fixed for a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.merge._family import At, Merge, Survey, Total, mixed


@dataclass(frozen=True, kw_only=True)
class Linear(Merge):
    """``Σ c_i · W_i`` with the base as the first: files say what the coefficients are, of the weights and of products of whole tensors.

    ``products`` says of which tensors products are taken: none, of the ``tensors`` themselves with the base first, or of their
    ``differences`` from the base.
    """

    short: ClassVar[bool] = True
    products: ClassVar[str] = ""

    def coefficients(self, weights: Sequence[float], gram: torch.Tensor) -> Sequence[float]:
        """One for the base and one for each model; ``gram`` (k, k) float64 holds the products, empty where none are taken."""
        raise NotImplementedError

    @override
    def shows(self, weights: Sequence[float]) -> bool:
        if self.products:
            return False
        base, *others = self.coefficients(weights, torch.empty(0, 0))
        return all(others) and (base != 0 or not self.reads_base)

    @override
    def survey(self, models: int, entries: int) -> Survey:
        if not self.products:
            return None
        return (yield Total(_differences if self.products == "differences" else _tensors))

    @override
    def at_once(
        self, base: torch.Tensor, others: Sequence[torch.Tensor], weights: Sequence[float], dtype: torch.dtype
    ) -> torch.Tensor | None:
        """Two tensors of 16 bits whose coefficients are shares: drawn from the heavier one to the other in float32, and rounded once."""
        if self.products or dtype.itemsize != 2:
            return None
        count = [(share, tensor) for share, tensor in zip(self.coefficients(weights, torch.empty(0, 0)), (base, *others)) if share]
        if len(count) != 2 or count[0][0] + count[1][0] != 1 or any(tensor.dtype != dtype for _, tensor in count):
            return None
        (_, light), (share, heavy) = sorted(count, key=lambda pair: pair[0])
        return torch.lerp(light, heavy, share) if share <= 1 else None

    @override
    def combine(self, base: torch.Tensor, others: Sequence[torch.Tensor], weights: Sequence[float], at: At) -> torch.Tensor:
        gram = at.known if at.known is not None else torch.empty(0, 0)
        return mixed((base, *others), self.coefficients(weights, gram))


def _tensors(base: torch.Tensor, others: Sequence[torch.Tensor], at: At) -> torch.Tensor:
    return _gram([base, *others])


def _differences(base: torch.Tensor, others: Sequence[torch.Tensor], at: At) -> torch.Tensor:
    return _gram([other.double() - base.double() for other in others])


def _gram(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    wide = [tensor.reshape(-1).double() for tensor in tensors]
    found = torch.empty(len(wide), len(wide), dtype=torch.float64)
    for i, one in enumerate(wide):
        for j, other in enumerate(wide[: i + 1]):
            found[i, j] = found[j, i] = torch.dot(one, other)
    return found
