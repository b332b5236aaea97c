"""Kmeans: neighbouring weights as the nearest entries of a codebook found by k-means."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from typing_extensions import override

from modicum import forms
from modicum.core.method import Paper
from modicum.core.unit import Stats
from modicum.numerics.codebook import begun
from modicum.quantize._codebook import Quantizer


@dataclass(frozen=True, kw_only=True)
class Kmeans(Quantizer):
    """Take ``dimension`` neighbouring weights of a row together, and for them the nearest entry of a codebook, or sum of entries of several.

    Codebooks belong to the whole weight, or to so many ``columns`` of it; each row has a scale beside. Entries are found by Lloyd's algorithm,
    those of several ``stages`` in turns, each fitted to what the others leave.

    *Shapes:* weight (rows, columns); ``2^bits`` entries of ``dimension`` numbers of 16 bits a codebook. *Needs and cost:* no data; some thirty passes
    over at most 32,768 vectors, each of rows · columns / dimension · 2^bits distances, and one over all. *Reduces to:* the original weights where
    each row's vectors are entries times its scale. *Raises:* ``SettingError`` where codebooks take as much as the weight, and where it comes after
    a step that left no dense weight.

    Example:
        >>> import torch
        >>> Kmeans(bits=4, dimension=2).code(torch.randn(8, 64), Stats(), torch.float32).nbytes
        224

    """

    paper = Paper("Compressing Deep Convolutional Networks using Vector Quantization", "1412.6115", 2014,
                  "Gong, Yunchao and Liu, Liu and Yang, Ming and Bourdev, Lubomir")  # fmt: skip

    @override
    def code(self, weight: torch.Tensor, stats: Stats, dtype: torch.dtype) -> forms.Codebook:
        return begun(weight, None, self.layout, dtype)
