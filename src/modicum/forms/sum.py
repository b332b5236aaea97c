"""Sum: several forms added, such as codes plus a low-rank repair."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.form import Form, restore


class Sum(Form):
    """The sum of ``parts``, forms of one shape; added in float32, then rounded once."""

    kind = "sum"

    def __init__(self, parts: tuple[Form, ...]):
        self.parts, self.shape, self.dtype = parts, parts[0].shape, parts[0].dtype

    @override
    def dense(self) -> torch.Tensor:
        return torch.stack([part.dense().float() for part in self.parts]).sum(0).to(self.dtype)

    @override
    def product(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.stack([part.product(inputs) for part in self.parts]).sum(0)

    @override
    def tensors(self) -> dict[str, torch.Tensor]:
        return {f"{index}.{name}": tensor for index, part in enumerate(self.parts) for name, tensor in part.tensors().items()}

    @override
    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @override
    @cached_property
    def outline(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {f"{index}.{name}": entry for index, part in enumerate(self.parts) for name, entry in part.outline.items()}

    @override
    def settings(self) -> dict[str, Any]:
        return {"parts": [part.describe() for part in self.parts]}

    @override
    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        inner = [
            {n.partition(".")[2]: t for n, t in tensors.items() if n.partition(".")[0] == str(i)} for i in range(len(settings["parts"]))
        ]
        return cls(tuple(restore(described, mine) for described, mine in zip(settings["parts"], inner)))

    @override
    @property
    def values(self) -> int:
        return sum(part.values for part in self.parts)
