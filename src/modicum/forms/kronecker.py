"""Kronecker: a coarse and a fine form, the fine one repeated under every entry of the coarse one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.composite import Composite
from modicum.forms.form import Form


class Kronecker(Composite):
    """The Kronecker product ``coarse ⊗ fine``: (a, c) and (b, d) give (a·b, c·d), in float32."""

    kind = "kronecker"

    def __init__(self, coarse: Form, fine: Form):
        self.parts, self.dtype = (coarse, fine), coarse.dtype
        self.shape = (coarse.shape[0] * fine.shape[0], coarse.shape[1] * fine.shape[1])

    @override
    def made_of(self, parts: Sequence[Form]) -> Form:
        return Kronecker(parts[0], parts[1])

    @override
    def value(self) -> torch.Tensor:
        coarse, fine = (part.value() for part in self.parts)
        return torch.kron(coarse.contiguous(), fine.contiguous())

    @override
    @classmethod
    def joined(
        cls, parts: tuple[Form, ...], own: Mapping[str, torch.Tensor], said: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype
    ) -> Form:
        coarse, fine = parts
        made = cls(coarse, fine)
        if own or made.shape != shape:
            raise ValueError(f"two forms whose sides multiply to {shape} belong in a Kronecker product")
        return made
