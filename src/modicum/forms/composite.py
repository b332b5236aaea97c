"""What forms made of other forms have in common: their parts are saved under numbers, and a base is laid under all of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from typing_extensions import override

from modicum.forms.form import Form, restore


class Composite(Form):
    """A value made of ``parts``, and of tensors of its ``own`` beside them; computed in float32 by ``value`` and rounded once."""

    parts: tuple[Form, ...]

    @abstractmethod
    def made_of(self, parts: Sequence[Form]) -> Form:
        """The same of other parts."""

    def own(self) -> dict[str, torch.Tensor]:
        """Tensors beside those of the parts; their names hold no dot."""
        return {}

    def said(self) -> dict[str, Any]:
        """What a reader must know beside parts and tensors; JSON values only."""
        return {}

    @classmethod
    @abstractmethod
    def joined(
        cls, parts: tuple[Form, ...], own: Mapping[str, torch.Tensor], said: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype
    ) -> Form:
        """The form of parts, tensors of its own and settings. Raises ``ValueError`` where they do not fit together."""

    @override
    @abstractmethod
    def value(self) -> torch.Tensor: ...

    @override
    def on(self, base: Form | None, shared: Mapping[str, torch.Tensor] | None = None) -> Form:
        return self.made_of([part.on(base, shared) for part in self.parts])

    @override
    def dense(self) -> torch.Tensor:
        return self.value().to(self.dtype)

    @override
    def movable(self) -> dict[str, torch.Tensor]:
        return {f"{index}.{name}": tensor for index, part in enumerate(self.parts) for name, tensor in part.movable().items()}

    @override
    def having(self, numbers: Mapping[str, torch.Tensor]) -> Form:
        mine = lambda index: {name.partition(".")[2]: tensor for name, tensor in numbers.items() if name.partition(".")[0] == str(index)}
        return self.made_of([part.having(mine(index)) for index, part in enumerate(self.parts)])

    @override
    def tensors(self) -> dict[str, torch.Tensor]:
        inner = {f"{index}.{name}": tensor for index, part in enumerate(self.parts) for name, tensor in part.tensors().items()}
        return inner | {name: tensor.contiguous() for name, tensor in self.own().items()}

    @override
    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts) + sum(tensor.nbytes for tensor in self.own().values())

    @override
    @cached_property
    def outline(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        inner = {f"{index}.{name}": entry for index, part in enumerate(self.parts) for name, entry in part.outline.items()}
        return inner | {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in self.own().items()}

    @override
    def settings(self) -> dict[str, Any]:
        return {**self.said(), "parts": [part.describe() for part in self.parts]}

    @override
    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        sorted_out: list[dict[str, torch.Tensor]] = [{} for _ in settings["parts"]]
        own: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            index, dot, rest = name.partition(".")
            if dot and int(index) >= 0:
                sorted_out[int(index)][rest] = tensor
            else:
                own[name] = tensor
        parts = tuple(restore(described, mine, known=True) for described, mine in zip(settings["parts"], sorted_out))
        return cls.joined(parts, own, settings, shape, dtype)

    @override
    @property
    def values(self) -> int:
        return sum(part.values for part in self.parts) + sum(tensor.numel() for tensor in self.own().values())


class Turned(Composite):
    """One form, ``inner``, whose value one ``tensor`` turns into another of its shape; files say how, and what fits."""

    # The tensor's name in a file.
    called: ClassVar[str]

    def __init__(self, inner: Form, tensor: torch.Tensor):
        self.parts, self.tensor, self.shape, self.dtype = (inner,), tensor, inner.shape, inner.dtype

    @classmethod
    @abstractmethod
    def fitting(cls, stored: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """The tensor as a file holds it, for a form of a shape. Raises ``ValueError`` where it does not fit."""

    @override
    def made_of(self, parts: Sequence[Form]) -> Form:
        return type(self)(parts[0], self.tensor)

    @override
    def own(self) -> dict[str, torch.Tensor]:
        return {self.called: self.tensor}

    @override
    @classmethod
    def joined(
        cls, parts: tuple[Form, ...], own: Mapping[str, torch.Tensor], said: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype
    ) -> Form:
        (inner,) = parts
        if inner.shape != shape or own.keys() != {cls.called}:
            raise ValueError(f"a form of {shape} belongs beside {cls.called}, and nothing else")
        return cls(inner, cls.fitting(own[cls.called], shape))
