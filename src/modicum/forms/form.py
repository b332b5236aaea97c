"""The interface of all forms, and how a saved one is restored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch

from modicum.core.errors import ModelError, quoted
from modicum.core.finite import finite

_KINDS: dict[str, type[Form]] = {}


class Form(ABC):
    """A matrix of shape (rows, columns) in some stored form; immutable by convention."""

    kind: ClassVar[str]
    # Tensors that all rows have in common, by attribute, where all others grow with rows.
    shared: ClassVar[frozenset[str]] = frozenset()
    shape: tuple[int, int]
    dtype: torch.dtype

    def __init_subclass__(cls) -> None:
        if "kind" in vars(cls):  # what several kinds have in common has none
            _KINDS[cls.kind] = cls

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its exact parts, whatever larger tensors they are views of."""
        return restore, (self.describe(), {part: tensor.clone() for part, tensor in self.tensors().items()})

    def value(self) -> torch.Tensor:
        """Value (rows, columns) in float32 or wider, before the one rounding to ``dtype`` where it is computed at all."""
        return self.dense().float()

    def on(self, base: Form | None, shared: Mapping[str, torch.Tensor] | None = None) -> Form:
        """The same on a base: leaves that stand for one, or for ``shared`` tensors by name, replaced by them. Raises ``ModelError``."""
        return self

    def finite(self) -> bool:
        """Whether the dequantized value holds neither NaN nor Inf."""
        return finite(self.dense())

    @abstractmethod
    def dense(self) -> torch.Tensor:
        """Value as a (rows, columns) tensor of ``dtype``."""

    @abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """What is written to a file, by short name."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What a reader must know beside the tensors and the shape; JSON values only."""

    @classmethod
    @abstractmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        """The form that ``tensors()`` and ``settings()`` described."""

    @property
    @abstractmethod
    def values(self) -> int:
        """Number of stored weight values: dense entries, codes, nonzeros, low-rank factors; scales and tables apart."""

    @property
    def nbytes(self) -> int:
        """Exact bytes of the stored tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @cached_property
    def outline(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtype and shape of each stored tensor; told once, forms do not change."""
        return {part: (tensor.dtype, tuple(tensor.shape)) for part, tensor in self.tensors().items()}

    def zeroed(self, where: torch.Tensor) -> Form:
        """The same with exact zeros at ``where``, bool (rows, columns), in as many bytes. Raises ``ModelError`` where it cannot hold them."""
        raise ModelError(
            f"compressed weight: of kind {self.kind}, it cannot hold entries at zero that pruning left. Choose another option."
        )

    def movable(self) -> dict[str, torch.Tensor]:
        """Real numbers among what is stored, by short name: those that may move while all else, such as codes and masks, stays."""
        return {}

    def having(self, numbers: Mapping[str, torch.Tensor]) -> Form:
        """The same with other ``movable`` numbers, of the same names and shapes; its value is differentiable in them."""
        return self

    @property
    def rounding(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """What the product does to inputs (..., columns) before it multiplies; None where it takes them as they are."""
        return None

    def product(self, inputs: torch.Tensor) -> torch.Tensor:
        """``inputs @ dense().T`` for inputs (..., columns), as they are or as ``rounding`` leaves them."""
        taken = inputs if self.rounding is None else self.rounding(inputs)
        if taken.requires_grad and torch.is_grad_enabled():
            return _Remade.apply(taken, self)
        return taken @ self.dense().to(inputs.dtype).T

    def describe(self) -> dict[str, Any]:
        """JSON description: kind, shape, dtype and settings."""
        return {"kind": self.kind, "shape": list(self.shape), "dtype": str(self.dtype).removeprefix("torch."), **self.settings()}


class _Remade(torch.autograd.Function):
    """``inputs @ dense().T`` whose backward pass makes the dense value again instead of keeping it."""

    @staticmethod
    def forward(ctx, inputs: torch.Tensor, form: Form) -> torch.Tensor:
        ctx.form = form
        return inputs @ form.dense().to(inputs.dtype).T

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return gradient @ ctx.form.dense().to(gradient.dtype), None


def expect(tensor: torch.Tensor, shape: tuple[int, ...], *dtypes: torch.dtype) -> torch.Tensor:
    """The tensor, if it has this shape and one of the dtypes (any where none is given); raises ``ValueError`` otherwise."""
    if tuple(tensor.shape) != shape or (dtypes and tensor.dtype not in dtypes):
        raise ValueError(f"{tuple(tensor.shape)} of {tensor.dtype} came where {shape} belongs")
    return tensor


def restore(described: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], *, known: bool = False) -> Form:
    """Form from ``describe()`` and its tensors. Raises ``ModelError`` for an unknown kind or parts that do not fit together.

    ``known`` parts were found to fit before: their dense value is not made to see.
    """
    kind = described.get("kind") if isinstance(described, Mapping) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ModelError(f"compressed weight: its kind must be one of {', '.join(sorted(_KINDS))}, got {kind!r}. Write the file anew.")
    try:
        shape, dtype = (int(described["shape"][0]), int(described["shape"][1])), getattr(torch, str(described["dtype"]))
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(f"dtype must be one of floats, is {quoted(repr(described['dtype']))}")
        form = _KINDS[kind].restored(tensors, described, shape, dtype)
        if not known and tuple(form.dense().shape) != shape:
            raise ValueError(f"shape {shape} does not match the tensors")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, OverflowError) as error:
        raise ModelError(
            f"compressed weight: of kind {kind}, its tensors and settings must fit together ({quoted(error)}). Write the file anew."
        ) from None
    return form
