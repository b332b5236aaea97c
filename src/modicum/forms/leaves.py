"""Leaves that hold nothing of their own: the base that a delta stands on, tensors that several weights share, and numbers drawn from a seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from typing_extensions import override

from modicum.core.errors import ModelError
from modicum.forms.form import Form, expect

# Entries of a matrix of chance that are drawn at a time.
_DRAWN = 1 << 22


class Leaf(Form):
    """A form without tensors of its own."""

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype):
        self.shape, self.dtype = shape, dtype

    @override
    def tensors(self) -> dict[str, torch.Tensor]:
        return {}

    @override
    @property
    def values(self) -> int:
        return 0


class Base(Leaf):
    """The weight that a delta stands on: ``digest`` is the SHA-256 of its dense bytes in ``dtype``, empty where any base of the shape serves.

    It has no value until ``on`` lays one under it.
    """

    kind = "base"

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, unit: str = "", digest: str = ""):
        super().__init__(shape, dtype)
        self.unit, self.digest = unit, digest

    @override
    def on(self, base: Form | None, shared: Mapping[str, torch.Tensor] | None = None) -> Form:
        if base is None:
            return self
        if base.shape != self.shape:
            raise ModelError(f"{self.unit}: the delta stands on a weight of shape {self.shape}, and the base has one of {base.shape}.")
        return base

    @override
    def dense(self) -> torch.Tensor:
        raise ModelError(f"{self.unit or 'delta'}: has no value without the weight that it stands on. Apply it to its base.")

    @override
    def settings(self) -> dict[str, Any]:
        return {"unit": self.unit, "digest": self.digest}

    @override
    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        return cls(shape, dtype, str(settings["unit"]), str(settings["digest"]))


class Shared(Leaf):
    """A corner (rows, columns) of a tensor that several weights share under ``name``: stored once, beside the forms.

    ``tensor`` is it, where it is at hand; without it the leaf has no value until ``on`` puts it there.
    """

    kind = "shared"

    def __init__(self, name: str, shape: tuple[int, int], dtype: torch.dtype, tensor: torch.Tensor | None = None):
        super().__init__(shape, dtype)
        self.name, self.tensor = name, tensor

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return Shared, (self.name, self.shape, self.dtype, self.tensor)

    @override
    def on(self, base: Form | None, shared: Mapping[str, torch.Tensor] | None = None) -> Form:
        if shared is None:
            return self
        if self.name not in shared or any(has < asked for has, asked in zip(shared[self.name].shape, self.shape)):
            raise ModelError(f"delta: shared tensor {self.name!r} of at least {self.shape} must be there. Write the delta anew.")
        from modicum.forms.dense import Dense

        return Dense(shared[self.name][: self.shape[0], : self.shape[1]].to(self.dtype))

    @override
    def dense(self) -> torch.Tensor:
        if self.tensor is not None:
            return self.tensor[: self.shape[0], : self.shape[1]].to(self.dtype)
        raise ModelError(f"delta: shared tensor {self.name!r} lies beside the forms. Apply the delta as a whole.")

    @override
    def settings(self) -> dict[str, Any]:
        return {"name": self.name}

    @override
    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        return cls(str(settings["name"]), shape, dtype)


def beside(forms: Iterable[Form]) -> dict[str, torch.Tensor]:
    """Tensors that forms share and have at hand, each once, by name."""
    found: dict[str, torch.Tensor] = {}
    for form in forms:
        if isinstance(form, Shared) and form.tensor is not None:
            found.setdefault(form.name, form.tensor)
        found = {**beside(getattr(form, "parts", ())), **found}
    return found


class Seeded(Leaf):
    """A corner of a matrix of uniform numbers in ±``bound``, drawn from ``seed`` and ``width`` columns wide: the file holds the seed alone.

    Entries come from the raw words of a counter (Philox), so they are the same in every version of every library: entry ``n`` of the matrix, row
    by row, is word ``n``.
    """

    kind = "seeded"
    _largest: ClassVar[int] = 1 << 27  # entries up to which a file's word is taken

    def __init__(self, seed: int, bound: float, shape: tuple[int, int], dtype: torch.dtype, width: int = 0):
        super().__init__(shape, dtype)
        self.seed, self.bound, self.width = seed, bound, width or shape[1]
        if not (0 <= seed < 2**63 and self.shape[1] <= self.width and self.shape[0] * self.width <= self._largest):
            raise ValueError("a seed below 2**63 and a matrix of this width at least belong to numbers drawn from a seed")

    @override
    def dense(self) -> torch.Tensor:
        return self.value().to(self.dtype)

    @override
    def value(self) -> torch.Tensor:
        source, rows = np.random.Philox(key=self.seed), max(1, _DRAWN // self.width)
        drawn = [
            source.random_raw(count * self.width).reshape(count, self.width)[:, : self.shape[1]] >> np.uint64(40)
            for count in (min(rows, self.shape[0] - at) for at in range(0, self.shape[0], rows))
        ]
        whole = torch.from_numpy(np.concatenate(drawn).astype(np.float32)) if drawn else torch.zeros(self.shape)
        return (whole * 2.0**-23 + 2.0**-24 - 1) * self.bound

    @override
    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed, "bound": self.bound, "width": self.width}

    @override
    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        return cls(int(settings["seed"]), float(settings["bound"]), shape, dtype, int(settings["width"]))


def scattered(seed: int, count: int, size: int) -> torch.Tensor:
    """``count`` different places among ``size``, ascending int64, drawn from ``seed`` by the same counter on every machine.

    Raises ``ValueError`` for more places than there are.
    """
    if not 0 <= count <= size:
        raise ValueError(f"{count} places belong among {size}")
    words = np.random.Philox(key=seed).random_raw(size)
    return expect(torch.from_numpy(np.sort(np.argpartition(words, count - 1)[:count] if count else words[:0].astype(np.int64))), (count,))
