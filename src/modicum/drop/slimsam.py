"""SlimSAM's disturbed Taylor importance: what noise on the features feels of heads and channels, without labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from modicum.core.method import Paper
from modicum.drop._masks import Masker


@dataclass(frozen=True, kw_only=True)
class Slimsam(Masker):
    """Cut the heads and channels that a loss against the model's own disturbed outputs feels least, across all layers at once; no labels.

    The loss ``‖f(x) - (f(x) + noise)‖²`` is not at its minimum, though its target is the model's own output, so it has a gradient: the noise itself,
    sent back. A group's score is the mean over sequences of its mask's absolute gradient, squared, per weight that goes with it. Of features the
    noise has one size, of logits it has the covariance that labels of the model's distribution would give it.

    *Shapes:* gradients of masks (sequences, groups). *Needs and cost:* a forward, a recomputation and a backward of each of ``sequences``
    inputs, one block's weights in memory. *Reduces to:* the original model at ``keep=1``. *Raises:* ``ModelError`` where no coupled
    cut is found, or the model cannot be differentiated.

    *Differences from the paper:* the criterion alone: heads and channels go at once, the width of the embedding stays, and no
    features are distilled between steps (``--heal`` trains what remains afterwards).

    Example:
        >>> import torch
        >>> Slimsam().importance(torch.tensor([[1.0, -2.0], [-1.0, 2.0]]))
        tensor([1., 4.])

    """

    paper = Paper("0.1% Data Makes Segment Anything Slim", "2312.05284", 2023, "Chen, Zigeng and others")

    @property
    def drawn(self) -> bool:
        """Always: the text's labels are not looked at."""
        return True

    def importance(self, gradients: torch.Tensor) -> torch.Tensor:
        """Squared mean absolute gradient."""
        return gradients.abs().mean(0).square()
