"""Fisher masks: heads and channels go whose masks the loss feels least, in the second order."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from modicum.core.method import Paper
from modicum.drop._masks import Masker


@dataclass(frozen=True, kw_only=True)
class FisherMasks(Masker):
    """Cut the heads and feed-forward channels of least Fisher information in their masks, across all layers at once.

    At a mask ``m = 1`` on each group the loss loses ``½ Σ_s (∂L_s/∂m)²`` when the group goes: the diagonal of the Fisher information of the masks,
    from each sequence's gradient. Groups are compared by that loss per weight that goes with them.

    *Shapes:* gradients of masks (sequences, groups). *Needs and cost:* a forward, a recomputation and a backward of each of ``sequences``
    sequences, one block's weights in memory. *Reduces to:* the original model at ``keep=1``. *Raises:* ``ModelError`` where no coupled
    cut is found, or the model cannot be differentiated.

    *Differences from the paper:* a global knapsack by loss per weight stands for its search under a latency table; masks are not rearranged or
    tuned afterwards. Outside causal language models labels are drawn from the model's own output.

    Example:
        >>> import torch
        >>> FisherMasks().importance(torch.tensor([[1.0, -2.0], [-1.0, 2.0]]))
        tensor([1., 4.])

    """

    paper = Paper("A Fast Post-Training Pruning Framework for Transformers", "2204.09656", 2022, "Kwon, Woosuk and others")

    def importance(self, gradients: torch.Tensor) -> torch.Tensor:
        """Half the sum of squares."""
        return 0.5 * gradients.square().sum(0)
