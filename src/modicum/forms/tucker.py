"""Tucker: a small core with a factor for each side of a weight of several sides, such as a convolution's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.form import Form, expect


def expanded(core: torch.Tensor, factors: Sequence[torch.Tensor]) -> torch.Tensor:
    """``core`` times each factor (side, rank) along its side, as a matrix (first side, product of the others)."""
    whole = reduce(lambda value, factor: torch.tensordot(value, factor, dims=([0], [1])), factors, core)  # each side goes to the end
    return whole.reshape(len(factors[0]), -1)


class Tucker(Form):
    """``core ×₁ factor₁ ×₂ factor₂ ...`` with core (rank₁, rank₂, ...) and factors (side, rank); the first side is the rows."""

    kind = "tucker"

    def __init__(self, core: torch.Tensor, factors: Sequence[torch.Tensor]):
        self.core, self.factors, self.dtype = core, tuple(factors), core.dtype
        self.shape = (len(factors[0]), math.prod(len(factor) for factor in factors[1:]))

    @override
    def dense(self) -> torch.Tensor:
        return self.value().to(self.dtype)

    @override
    def value(self) -> torch.Tensor:
        return expanded(self.core.float(), [factor.float() for factor in self.factors])

    @override
    def tensors(self) -> dict[str, torch.Tensor]:
        return {"core": self.core.contiguous()} | {f"factor{at}": factor.contiguous() for at, factor in enumerate(self.factors)}

    @override
    def settings(self) -> dict[str, Any]:
        return {}

    @override
    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        core = tensors["core"].to(dtype)
        factors = [expect(each, (len(each), rank)).to(dtype) for rank, each in zip(core.shape, cls._factors(tensors), strict=True)]
        made = cls(core, factors)
        if made.shape != shape:
            raise ValueError(f"factors of {made.shape} came where {shape} belongs")
        return made

    @staticmethod
    def _factors(tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        return [tensors[f"factor{at}"] for at in range(len(tensors) - 1)]

    @override
    @property
    def values(self) -> int:
        return self.core.numel() + sum(factor.numel() for factor in self.factors)
