"""Taylor: heads and channels go whose masks the loss feels least, in the first order."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.drop._masks import Masker


@dataclass(frozen=True, kw_only=True)
class Taylor(Masker):
    """Cut the heads and feed-forward channels whose masks have the least absolute gradients, across all layers at once.

    To the first order the loss of a sequence changes by ``|∂L_s/∂m|`` when a group goes; the score is the mean over sequences, divided by the norm
    of its site's where ``normed``. Groups are compared by its square per weight that goes with them: of groups that are felt alike, one twice as
    large has twice that.

    *Shapes:* gradients of masks (sequences, groups). *Needs and cost:* a forward, a recomputation and a backward of each of ``sequences``
    sequences, one block's weights in memory. *Reduces to:* the original model at ``keep=1``. *Raises:* ``ModelError`` where no coupled
    cut is found, or the model cannot be differentiated.

    *Differences from the paper:* channels as well as heads, all at once instead of a share a step. Outside causal language models
    labels are drawn from the model's own output.

    Example:
        >>> import torch
        >>> Taylor(normed=False).importance(torch.tensor([[1.0, -2.0], [-1.0, 2.0]]))
        tensor([1., 4.])

    """

    paper = Paper("Are Sixteen Heads Really Better than One?", "1905.10650", 2019, "Michel, Paul and others")

    normed: bool = param(False, "divide the scores of each site by their norm, so that layers lose alike")

    def importance(self, gradients: torch.Tensor) -> torch.Tensor:
        """Squared mean absolute gradient."""
        found = gradients.abs().mean(0)
        return (found / found.norm().clamp_min(1e-30) if self.normed else found).square()
