"""Activated: a form whose product takes its inputs in eight bits, or four, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.form import Form, expect, restore

# By format: half of the span of its codes, by which the largest magnitude is divided, and the codes at both ends.
_SPANS = {"int8": (127.5, -128.0, 127.0), "fp8": (448.0, -448.0, 448.0), "int4": (7.5, -8.0, 7.0)}
FORMATS = (*_SPANS, "mxfp4", "nvfp4")
# Columns that share a scale, the largest four-bit float, the largest scale, and the one in place of none.
_GROUPS, _TOP, _MOST, _LEAST = {"mxfp4": 32, "nvfp4": 16}, 6.0, 448.0, 0.125


@dataclass(frozen=True, eq=False)
class Rounding:
    """``scale · code(x / scale)``, symmetric: whole numbers of eight or four bits (``int8``, ``int4``), E4M3 (``fp8``), E2M1 (``mxfp4``, ``nvfp4``).

    ``scale`` (1,) is one for all inputs, found beforehand; without it each token (the last axis) has its own, its largest magnitude's. Of ``mxfp4``
    32 columns of a token share a power of two; of ``nvfp4`` 16 share an E4M3 number over ``scale`` (1,), float32, found beforehand. All is computed
    in the inputs' own dtype, as compressed-tensors does where Transformers loads such a model.
    """

    format: str
    scale: torch.Tensor | None = None

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs (..., columns) as the product takes them."""
        if not inputs.numel():
            return inputs
        if self.format == "mxfp4":
            return _in_four_bits(inputs)
        if self.format == "nvfp4":
            assert self.scale is not None
            return _under_scales(inputs, self.scale.to(inputs.device))
        _, low, high = _SPANS[self.format]
        scale = scale_of(inputs.abs().amax(-1, keepdim=True), self.format) if self.scale is None else self.scale.to(inputs)
        codes = (inputs / scale).clamp_(low, high)
        codes = codes.round_() if self.format != "fp8" else codes.to(torch.float8_e4m3fn).to(inputs.dtype)
        return codes.mul_(scale)


def _in_four_bits(inputs: torch.Tensor) -> torch.Tensor:
    """Inputs (..., columns) as E2M1 numbers times a power of two for every 32 columns; of two levels as near, the even one.

    Beside what is not finite all 32 are NaN; what would round beyond the largest number of the dtype is that number.
    """
    groups = _grouped(inputs, "mxfp4")
    groups = groups.float() if groups.dtype.itemsize < 4 else groups
    largest = groups.abs().amax(-1, keepdim=True)
    part, power = torch.frexp(largest)  # part in [1/2, 1); what would round beyond the largest takes the next power
    power = (power - 3 + (part >= 0.875).to(power.dtype)).clamp_min(-127)
    places = torch.ldexp(groups, -power).clamp(-_TOP, _TOP)
    top = torch.finfo(inputs.dtype).max
    found = torch.ldexp(_nearest(places), power).clamp(-top, top).masked_fill(~largest.isfinite(), torch.nan)
    return found.flatten(-2)[..., : inputs.shape[-1]].to(inputs.dtype)


def _under_scales(inputs: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Inputs (..., columns) as E2M1 numbers times E4M3 scales over ``whole`` (1,) for every 16 columns; NaN beside what is not finite."""
    groups = _grouped(inputs, "nvfp4")
    largest = groups.abs().amax(-1, keepdim=True)
    scale = (whole * (largest / _TOP)).clamp(max=_MOST).to(torch.float8_e4m3fn).float()
    scale = torch.where(scale == 0, _LEAST, scale) / whole
    found = (_nearest((groups / scale).clamp(-_TOP, _TOP)) * scale).masked_fill(~largest.isfinite(), torch.nan)
    return found.flatten(-2)[..., : inputs.shape[-1]].to(inputs.dtype)


def _grouped(inputs: torch.Tensor, format: str) -> torch.Tensor:
    """Inputs (..., groups, width) of those columns that share a scale, the last filled with zeros."""
    width = _GROUPS[format]
    return torch.nn.functional.pad(inputs, (0, -inputs.shape[-1] % width)).unflatten(-1, (-1, width))


def _nearest(places: torch.Tensor) -> torch.Tensor:
    """E2M1 numbers nearest to values up to 6; of two as near, the even one."""
    size = places.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0)).to(places.dtype)
    return (places / step).round() * step


def scale_of(largest: torch.Tensor, format: str) -> torch.Tensor:
    """The scale under which magnitudes up to ``largest`` have codes, of its shape and dtype; of ``nvfp4`` what other scales are told over."""
    if format == "nvfp4":
        found = _MOST * _TOP / largest.float().clamp_min(torch.finfo(torch.float32).tiny)
        return torch.where(found.isfinite(), found, 1.0)
    scale = largest / _SPANS[format][0]
    return torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)


class Activated(Form):
    """``inner`` times inputs that are rounded first; its value and its bytes are the inner form's, and a scale where all inputs have one."""

    kind = "activated"

    def __init__(self, inner: Form, inputs: Rounding):
        self.inner, self.inputs, self.shape, self.dtype = inner, inputs, inner.shape, inner.dtype

    @override
    def dense(self) -> torch.Tensor:
        return self.inner.dense()

    @override
    def finite(self) -> bool:
        return self.inner.finite()

    @override
    def zeroed(self, where: torch.Tensor) -> Form:
        return Activated(self.inner.zeroed(where), self.inputs)

    @property
    @override
    def rounding(self) -> Rounding:
        return self.inputs

    @override
    def movable(self) -> dict[str, torch.Tensor]:
        return {f"inner.{name}": tensor for name, tensor in self.inner.movable().items()}

    @override
    def having(self, numbers: Mapping[str, torch.Tensor]) -> Form:
        inner = self.inner.having({name.removeprefix("inner."): tensor for name, tensor in numbers.items()})
        return Activated(inner, self.inputs)

    @override
    def tensors(self) -> dict[str, torch.Tensor]:
        found = {f"inner.{name}": tensor for name, tensor in self.inner.tensors().items()}
        return found if self.inputs.scale is None else found | {"scale": self.inputs.scale}

    @override
    @property
    def nbytes(self) -> int:
        return self.inner.nbytes + (0 if self.inputs.scale is None else self.inputs.scale.nbytes)

    @override
    @cached_property
    def outline(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        found = {f"inner.{name}": entry for name, entry in self.inner.outline.items()}
        return found if self.inputs.scale is None else found | {"scale": (self.inputs.scale.dtype, (1,))}

    @override
    def settings(self) -> dict[str, Any]:
        return {"inner": self.inner.describe(), "inputs": self.inputs.format}

    @override
    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype) -> Form:
        inner = {name.removeprefix("inner."): tensor for name, tensor in tensors.items() if name.startswith("inner.")}
        if settings["inputs"] not in FORMATS:
            raise ValueError(f"inputs in {settings['inputs']!r} are not known")
        wide = settings["inputs"] == "nvfp4"
        scale = expect(tensors["scale"], (1,)).to(torch.float32 if wide else dtype) if "scale" in tensors else None
        if wide and scale is None:
            raise ValueError("there is no scale of its inputs")
        if scale is not None and not bool(torch.isfinite(scale).all() & (scale > 0).all()):
            raise ValueError("a scale of inputs is no positive number")
        return cls(restore(settings["inner"], inner), Rounding(settings["inputs"], scale))

    @override
    @property
    def values(self) -> int:
        return self.inner.values
