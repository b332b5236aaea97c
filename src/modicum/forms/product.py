"""Product: forms multiplied as matrices, such as two factors of which one is drawn from a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.composite import Composite
from modicum.forms.form import Form


class Product(Composite):
    """``parts[0] @ parts[1] @ ...``, in float32."""

    kind = "product"

    def __init__(self, parts: tuple[Form, ...]):
        self.parts, self.shape, self.dtype = parts, (parts[0].shape[0], parts[-1].shape[1]), parts[0].dtype

    @override
    def made_of(self, parts: Sequence[Form]) -> Form:
        return Product(tuple(parts))

    @override
    def value(self) -> torch.Tensor:
        return reduce(torch.matmul, [part.value() for part in self.parts])

    @override
    def product(self, inputs: torch.Tensor) -> torch.Tensor:
        return reduce(lambda taken, part: part.product(taken), reversed(self.parts), inputs)

    @override
    @classmethod
    def joined(
        cls, parts: tuple[Form, ...], own: Mapping[str, torch.Tensor], said: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype
    ) -> Form:
        if not parts or own or any(one.shape[1] != other.shape[0] for one, other in pairwise(parts)):
            raise ValueError("parts that can be multiplied belong in a product, and nothing else")
        return cls(parts)
