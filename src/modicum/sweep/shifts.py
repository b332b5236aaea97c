"""The covariance of a convolution's patches: what one tap meets, the next meets a place further, so that most sums are known but for the edges."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from modicum.core.unit import Unit
from modicum.numerics.gram import add_gram, add_product, mirror
from modicum.sweep.patches import padded, patches, places

# Taps along an axis for each that is summed, and places for each at an edge, from which on shifts cost less than sums.
_TAPS, _PLACES = 2, 8


@dataclass
class Shifts:
    """Sums of products of patches, by shifts along one ``axis`` of the kernel.

    With patches x_p at places p of stride s, and taps i and j of dilation d, ``m`` taps being as far as ``t`` places (d·m = s·t)::

        H[i + m, j + m] = H[i, j] + Σ_edge x[i] x[j],    edge: the t places behind the last, less the first t

    So sums over all places are made for the first m taps alone. *Needs and cost:* of k taps m/k of the products of all columns, and those of t
    places in P twice; equal to the plain sums but for rounding. ``add`` takes rows of patches, ``add_edges`` the images they are of, and
    ``complete`` makes the whole of both.
    """

    module: Any
    channels: slice
    axis: int
    taps: int
    places: int
    first: torch.Tensor
    base: torch.Tensor = field(repr=False)

    @classmethod
    def of(cls, unit: Unit, module: Any, inputs: torch.Tensor, columns: slice | None = None) -> Shifts | None:
        """Shifts of a convolution with such inputs, for some ``columns`` of its rows; None where they gain nothing, or cut a channel."""
        columns = slice(0, unit.shape[1]) if columns is None else columns
        if unit.kind != "convolution" or columns.start % (deep := math.prod(module.kernel_size)) or columns.stop % deep:
            return None
        common = [math.gcd(stride, far) for stride, far in zip(module.stride, module.dilation)]
        taps = [stride // shared for stride, shared in zip(module.stride, common)]
        axis = max(range(len(taps)), key=lambda each: module.kernel_size[each] / taps[each])
        beyond = module.dilation[axis] // common[axis]
        met = places(module, padded(module, inputs))[axis]
        if module.kernel_size[axis] < _TAPS * taps[axis] or met < _PLACES * beyond:
            return None
        along = (
            torch.arange(math.prod(module.kernel_size)).view(module.kernel_size).movedim(axis, 0)[: taps[axis]].reshape(-1).sort().values
        )
        channels = slice(columns.start // deep, columns.stop // deep)
        first = (torch.arange(channels.stop - channels.start)[:, None] * deep + along).reshape(-1).to(inputs.device)
        base = torch.zeros(len(first), columns.stop - columns.start, device=inputs.device)
        return cls(module, channels, axis, taps[axis], beyond, first, base)

    def add(self, rows: torch.Tensor) -> None:
        """Add what the first taps have in common with all, of float32 rows (places, columns)."""
        add_product(self.base, rows[:, self.first], rows)

    def add_edges(self, total: torch.Tensor, inputs: torch.Tensor) -> None:
        """Add what places at both edges of a module's inputs have in common to the lower triangle of ``total`` (columns, columns)."""
        images, module = padded(self.module, inputs)[:, self.channels], self.module
        counts, at = places(module, images), 2 + self.axis
        behind = counts[self.axis] * module.stride[self.axis]
        wide = [0] * (2 * (images.ndim - 2 - self.axis) - 1) + [self.taps * module.dilation[self.axis]]
        images, counts = F.pad(images, wide), [*counts]
        counts[self.axis] = self.places
        for edge, sign in ((images.narrow(at, behind, images.shape[at] - behind), 1), (images, -1)):
            for rows in patches(module, edge, counts):
                add_gram(total, rows.float(), sign)

    def complete(self, total: torch.Tensor) -> None:
        """Make the covariance of what ``add_edges`` left in ``total`` (columns, columns), in place."""
        kernel: tuple[int, ...] = tuple(self.module.kernel_size)
        deep, rest = len(total) // math.prod(kernel[self.axis :]), math.prod(kernel[self.axis + 1 :])
        whole = mirror(total).view(deep, kernel[self.axis], rest, deep, kernel[self.axis], rest)
        begun, edges = self.base.view(deep, self.taps, rest, *whole.shape[3:]), []
        for tap in range(kernel[self.axis]):
            here = whole[:, tap]
            edges.append(here.clone())
            if tap < self.taps:
                here.copy_(begun[:, tap])
                continue
            before, edge = whole[:, tap - self.taps], edges.pop(0)
            here[..., : self.taps, :] = begun[:, :, :, :, tap].permute(3, 4, 0, 1, 2)
            here[..., self.taps :, :] = before[..., : -self.taps, :] + edge[..., : -self.taps, :]
