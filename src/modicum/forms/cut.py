"""Cut: a form of the rows and columns that remain; the others are zero and cost one bit each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.form import Form, restore
from modicum.forms.packing import pack, packed_outline, unpack


class Cut(Form):
    """``inner`` of shape (rows kept, columns kept) inside a matrix of zeros; ``rows`` and ``columns`` are boolean masks or None for all.

    The module around it keeps its shapes, so any architecture's own forward stays right; the product really is narrower.
    """

    kind = "cut"

    def __init__(self, inner: Form, rows: torch.Tensor | None, columns: torch.Tensor | None):
        self.inner, self.rows, self.columns, self.dtype = inner, rows, columns, inner.dtype
        self.shape = (inner.shape[0] if rows is None else len(rows), inner.shape[1] if columns is None else len(columns))

    @override
    def dense(self) -> torch.Tensor:
        value = self.inner.dense()
        if self.columns is not None:
            value = _scatter(value, self.columns)
        return value if self.rows is None else _scatter(value.T, self.rows).T.contiguous()

    @override
    def zeroed(self, where: torch.Tensor) -> Form:
        inside = where if self.columns is None else where[:, self.columns]
        return Cut(self.inner.zeroed(inside if self.rows is None else inside[self.rows]), self.rows, self.columns)

    @property
    @override
    def rounding(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        inner, columns = self.inner.rounding, self.columns
        return inner if inner is None or columns is None else partial(_remaining, inner, columns)

    @override
    def product(self, inputs: torch.Tensor) -> torch.Tensor:
        value = self.inner.product(inputs if self.columns is None else inputs[..., self.columns])
        return value if self.rows is None else _scatter(value, self.rows)

    @override
    def movable(self) -> dict[str, torch.Tensor]:
        return {f"inner.{name}": tensor for name, tensor in self.inner.movable().items()}

    @override
    def having(self, numbers: Mapping[str, torch.Tensor]) -> Form:
        inner = self.inner.having({name.removeprefix("inner."): tensor for name, tensor in numbers.items()})
        return Cut(inner, self.rows, self.columns)

    @override
    def tensors(self) -> dict[str, torch.Tensor]:
        found = {f"inner.{name}": tensor for name, tensor in self.inner.tensors().items()}
        for name, mask in (("rows", self.rows), ("columns", self.columns)):
            if mask is not None:
                found[name] = pack(mask.to(torch.uint8)[None], 1)
        return found

    @override
    @cached_property
    def outline(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        masks = {"rows": self.rows, "columns": self.columns}
        found = {f"inner.{name}": entry for name, entry in self.inner.outline.items()}
        return found | {name: packed_outline((1, len(mask)), 1) for name, mask in masks.items() if mask is not None}

    @override
    def settings(self) -> dict[str, Any]:
        return {"inner": self.inner.describe()}

    @override
    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        inner = {name.removeprefix("inner."): tensor for name, tensor in tensors.items() if name.startswith("inner.")}
        masks = {
            name: unpack(tensors[name], 1, size)[0].bool() for name, size in (("rows", shape[0]), ("columns", shape[1])) if name in tensors
        }
        form = restore(settings["inner"], inner)
        kept = [int(masks[name].sum()) if name in masks else size for name, size in zip(("rows", "columns"), shape)]
        if list(form.shape) != kept:
            raise ValueError(f"{form.shape} came where {kept} remain")
        return cls(form, masks.get("rows"), masks.get("columns"))

    @override
    @property
    def values(self) -> int:
        return self.inner.values


def _remaining(inner: Callable[[torch.Tensor], torch.Tensor], columns: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """What ``inner`` makes of the columns that remain, in their places."""
    return _scatter(inner(inputs[..., columns]), columns)


def _scatter(value: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """``value`` (..., kept count) spread over the true places of ``kept``; zeros elsewhere."""
    full = torch.zeros(*value.shape[:-1], len(kept), dtype=value.dtype, device=value.device)
    full[..., kept] = value
    return full
