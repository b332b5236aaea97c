"""How a classifier sees its inputs: sizes of features, their angles to their classes, and margins; and what a change of it turns."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class View:
    """Of each row (rows,): the norm of its features, the angle in degrees between them and its class's weights, its margin, and what is answered.

    A margin is the logit of the right class minus the largest other one, in units of the distance to where the two are equal, so that scales of
    weights do not count; below zero the answer is wrong.
    """

    norm: torch.Tensor
    angle: torch.Tensor
    margin: torch.Tensor
    chosen: torch.Tensor

    def tensors(self) -> dict[str, torch.Tensor]:
        """What can be averaged, by name."""
        return {"norm": self.norm, "angle": self.angle, "margin": self.margin}


def view(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor) -> View:
    """What a head of weights (classes, columns) and biases (classes,) makes of features (rows, columns) with labels (rows,).

    After Li and others, "Understanding Robustness Lottery": A Geometric Visual Comparative Analysis of Neural Network Pruning Approaches
    (2206.07918).
    """
    logits = features @ weight.T + (0 if bias is None else bias)
    own = weight[labels]
    cosine = torch.nn.functional.cosine_similarity(features, own, dim=1, eps=1e-12)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    rival = others.argmax(1)
    apart = (own - weight[rival]).norm(dim=1)
    lead = logits.gather(1, labels[:, None])[:, 0] - others.amax(1)
    margin = torch.where(apart > 0, lead / apart.clamp_min(1e-30), 0.0)  # two classes of the same weights are equal nowhere, or everywhere
    return View(features.norm(dim=1), cosine.clamp(-1, 1).arccos().rad2deg(), margin, logits.argmax(1))


def flipped(before: torch.Tensor, after: torch.Tensor, labels: torch.Tensor) -> dict[str, list[int]]:
    """Which rows a change turns from right to wrong, and from wrong to right, of answers (rows,) before and after."""
    return {
        "wrong": ((before == labels) & (after != labels)).nonzero()[:, 0].tolist(),
        "right": ((before != labels) & (after == labels)).nonzero()[:, 0].tolist(),
    }
