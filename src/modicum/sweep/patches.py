"""Patches of images as a convolution meets them: rows of what its weight multiplies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn

# Values of patches that are made at a time.
_PATCHES = 1 << 24


def batched(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Images with an axis for the batch, which one alone may lack."""
    return images if images.ndim > len(module.kernel_size) + 1 else images.unsqueeze(0)  # type: ignore[arg-type]


def padded(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """A convolution's input with its padding."""
    pads, mode = list(module._reversed_padding_repeated_twice), str(module.padding_mode)  # type: ignore[arg-type]
    return F.pad(batched(module, inputs), pads, mode="constant" if mode == "zeros" else mode)


def met(module: nn.Module, output: torch.Tensor) -> list[int]:
    """Positions of a transposed convolution's input along each axis, from its output."""
    sizes = output.shape[output.ndim - len(module.kernel_size) :]  # type: ignore[arg-type]
    beyond = [more if more >= stride else 0 for more, stride in zip(module.output_padding, module.stride)]  # type: ignore[arg-type]
    geometry = zip(sizes, module.kernel_size, module.stride, module.dilation, module.padding, beyond)  # type: ignore[arg-type]
    return [(size - more + 2 * pad - far * (wide - 1) - 1) // step + 1 for size, wide, step, far, pad, more in geometry]


def places(module: nn.Module, images: torch.Tensor) -> list[int]:
    """Positions of a convolution's output along each axis, from its padded images."""
    geometry = zip(images.shape[2:], module.kernel_size, module.stride, module.dilation)  # type: ignore[arg-type]
    return [(size - far * (wide - 1) - 1) // step + 1 for size, wide, step, far in geometry]


def patches(module: nn.Module, images: torch.Tensor, counts: Sequence[int] = ()) -> Iterator[torch.Tensor]:
    """Patches (positions, channels · kernel) of padded images, a bounded number at a time, in the order of images and positions."""
    kernel, stride, dilation = tuple(module.kernel_size), tuple(module.stride), tuple(module.dilation)  # type: ignore[arg-type]
    (across, deep, *along), counts = images.stride(), counts or places(module, images)
    view = images.as_strided(
        (len(images), *counts, images.shape[1], *kernel),
        (across, *(a * step for a, step in zip(along, stride)), deep, *(a * far for a, far in zip(along, dilation))),
    )
    for part in _divided(view, 1 + len(counts)):
        yield part.reshape(-1, images.shape[1] * math.prod(kernel))


def _divided(view: torch.Tensor, axes: int, axis: int = 0) -> Iterator[torch.Tensor]:
    """Parts of few values along the leading ``axes``, in order: several of an axis where that is enough, else each divided along the next."""
    if view.numel() <= _PATCHES or axis == axes:
        yield view
        return
    for part in view.split(max(1, _PATCHES * view.shape[axis] // view.numel()), axis):
        yield from _divided(part, axes, axis + 1)
