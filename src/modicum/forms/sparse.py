"""Sparse: values at places that are stored, or drawn from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.form import Form, expect
from modicum.forms.leaves import scattered


class Sparse(Form):
    """``entries`` (count,) at ``places`` (count,), ascending and row by row, int32 or int64; where ``seed`` is told the places are drawn from it."""

    kind = "sparse"

    def __init__(self, entries: torch.Tensor, shape: tuple[int, int], places: torch.Tensor | None = None, seed: int | None = None):
        self.entries, self.shape, self.dtype, self.seed = entries, shape, entries.dtype, seed
        if (places is None) == (seed is None):
            raise ValueError("either places or a seed of them belongs beside sparse entries")
        self._stored = places

    @cached_property
    def places(self) -> torch.Tensor:
        """Where the entries lie; drawn when somebody asks, for a file may claim any shape."""
        if self._stored is not None:
            return self._stored
        assert self.seed is not None
        return scattered(self.seed, len(self.entries), self.shape[0] * self.shape[1])

    @override
    def dense(self) -> torch.Tensor:
        value = torch.zeros(self.shape[0] * self.shape[1], dtype=self.dtype, device=self.entries.device)
        return value.index_copy(0, self.places.long(), self.entries).reshape(self.shape)

    @override
    def tensors(self) -> dict[str, torch.Tensor]:
        return {"entries": self.entries.contiguous()} | ({"places": self.places.contiguous()} if self.seed is None else {})

    @override
    def settings(self) -> dict[str, Any]:
        return {} if self.seed is None else {"seed": self.seed}

    @override
    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        entries = expect(tensors["entries"], (tensors["entries"].numel(),)).to(dtype)
        if "seed" in settings:
            seed = int(settings["seed"])
            if not (0 <= seed < 2**63 and len(entries) <= shape[0] * shape[1]):
                raise ValueError("a seed below 2**63, and no more entries than the weight has, belong in a sparse form")
            return cls(entries, shape, seed=seed)
        places = expect(tensors["places"], (len(entries),), torch.int32, torch.int64)
        if len(places) and not (bool((places.diff() > 0).all()) and int(places[0]) >= 0 and int(places[-1]) < shape[0] * shape[1]):
            raise ValueError("places must ascend within the weight")
        return cls(entries, shape, places)

    @override
    @property
    def values(self) -> int:
        return len(self.entries)
