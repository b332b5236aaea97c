"""D-Pruner: weights stay that a domain needs, or that the model needs for whatever else it can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from modicum.core.method import Need, Paper
from modicum.core.settings import param
from modicum.core.unit import Stats
from modicum.prune._family import Pruner
from modicum.prune.magnitude import Magnitude


@dataclass(frozen=True, kw_only=True)
class Dpruner(Pruner):
    """Prune by what a domain's loss feels of a weight, where the loss also holds on to what the model knows in general.

    With gradient g and mean square H of it on the calibration text, which is the domain's, a weight's removal changes the loss by about
    ``|g w - ½ H w²|``. The general importance ``G = ½ w² Ĥ``, of gradients on text that the model writes itself, is added to the loss as
    ``preserve · Σ G (w' - w)²``; after a step against g its gradient is ``preserve · G g H``, so the score is ``|g' w - ½ H w²|`` with
    ``g' = g (1 + preserve · G H / mean)``, plus ``preserve`` times the general importance itself, both relative to their means over the layer. Rows
    compete with nobody but themselves.

    *Shapes:* weight and gradients (rows, columns). *Needs and cost:* a backward pass of each of ``--gradient-samples`` sequences, and of as many
    that the model writes, which takes a forward a token and the model in memory. *Reduces to:* the domain's importance alone at ``preserve=0``.
    *Raises:* ``SettingError`` for a malformed pattern. Weights whose gradients were not seen take ``magnitude`` per row.

    *Differences from the paper:* text of the model's own stands for an open-domain corpus; both terms are relative to their means, so that one
    ``preserve`` serves all layers; the general importance counts by itself too, for a weight whose gradient on the domain is nothing.

    Example:
        >>> import torch
        >>> from modicum.core.slopes import Slopes
        >>> slopes = Slopes(1, torch.tensor([[2.0, 0.0]]), torch.tensor([[4.0, 0.0]]), None, torch.tensor([[0.0, 8.0]]))
        >>> Dpruner(preserve=1.0).score(torch.ones(1, 2), Stats(slopes=slopes))
        tensor([[0., 2.]])

    """

    paper = Paper("Pruning as a Domain-specific LLM Extractor", "2405.06275", 2024, "Zhang, Nan and others")
    needs = frozenset({Need.SLOPES, Need.GENERAL})
    scope = "row"
    known_gaps: ClassVar[dict[str, str]] = {
        "scaled weights scale the answer": "terms of the first and of the second order are weighed against each other"
    }

    preserve: float = param(1.0, "what the model knows in general counts beside the domain", between=(0.0, 1e6))

    def without_data(self) -> Magnitude:
        """The stand-in for weights whose gradients were not seen."""
        return Magnitude(keep=self.keep, pattern=self.pattern, per_row=True)

    def score(self, weight: torch.Tensor, stats: Stats) -> torch.Tensor:
        """What the domain feels under the loss that holds on, and what is felt in general."""
        slopes = stats.slopes
        assert slopes is not None
        share = lambda value: value / value.mean().clamp_min(1e-30)
        own, energy = slopes.information, weight.square()
        general = torch.zeros_like(weight) if slopes.general is None else 0.5 * energy * slopes.general
        held = slopes.mean * (1 + self.preserve * share(general * own))
        return share((held * weight - 0.5 * own * energy).abs()) + self.preserve * share(general)
