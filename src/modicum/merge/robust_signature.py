"""Robust weight signatures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.merge._family import At, Largest, Merge, Survey, Total


@dataclass(frozen=True, kw_only=True)
class RobustSignature(Merge):
    """What training on corrupted data changes in the shallow layers is added to a model, quantized, and can be taken away again.

    Of each change the part along the base's own tensor is taken away, what is left is rounded to ``bits`` by its largest entry, and added in the
    first ``depth`` of the tensors: ``W_0 + scale · Σ w_i Q(d_i - <d_i, W_0> / |W_0|² W_0)``. Deeper tensors are the base's.

    *Shapes:* tensors of one shape.

    *Needs and cost:* no data; shallow tensors are read five times: for the products, for the largest entry, and to merge.

    *Reduces to:* ``task_arithmetic`` of the shallow part at bits 0 without projection.

    *Raises:* nothing of its own.

    *Differences from the paper:* depth is counted in tensors, in the order of their names.

    Example:
        >>> at = At("w", (2,), (1.0,), known=None, depth=0.9)
        >>> RobustSignature(depth=0.5).combine(torch.ones(2), [torch.zeros(2)], [1.0], at)
        tensor([1., 1.])

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Robust Weight Signatures: Gaining Robustness as Easy as Patching Weights?",
        arxiv="2302.12480",
        year=2023,
        authors="Ruisi Cai and Zhenyu Zhang and Zhangyang Wang",
    )
    known_gaps: ClassVar[dict[str, str]] = {"one model": "of its change only a part is added, rounded"}

    depth: float = param(0.5, "share of the tensors that are changed, the shallowest", between=(0.0, 1.0))
    bits: int = param(8, "bits of each entry of the signature, 0 for all", between=(0, 16))
    project: bool = param(True, "whether the part along the base is taken away")
    scale: float = param(1.0, "what the signatures are multiplied by", between=(-1e6, 1e6))

    @override
    def survey(self, models: int, entries: int) -> Survey:
        products = (yield Total(_products)) if self.project else None
        top = (yield Largest(lambda base, others, at: torch.stack(self._parts(base, others, products)).abs(), (1,))) if self.bits else None
        return products, top

    def _parts(self, base: torch.Tensor, others: Sequence[torch.Tensor], products: torch.Tensor | None) -> list[torch.Tensor]:
        shares = [0.0] * len(others) if products is None else (products[:-1] / products[-1].clamp(min=1e-300)).tolist()
        return [other - base - share * base for other, share in zip(others, shares)]

    @override
    def combine(self, base: torch.Tensor, others: Sequence[torch.Tensor], weights: Sequence[float], at: At) -> torch.Tensor:
        made = base.clone()
        if at.depth > self.depth or at.known is None:
            return made
        products, top = at.known
        for place, (part, weight) in enumerate(zip(self._parts(base, others, products), weights)):
            if top is not None and (step := float(top[place, 0]) / (2 ** (self.bits - 1) - 0.5)):
                part = (part / step).round() * step
            made.add_(part, alpha=self.scale * weight)
        return made


def _products(base: torch.Tensor, others: Sequence[torch.Tensor], at: At) -> torch.Tensor:
    wide = base.double()
    return torch.stack([*((wide * (other.double() - wide)).sum() for other in others), wide.square().sum()])
