"""The restrict family: a weight that is trained within what can be stored small."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from modicum.core.parametrization import Parametrization, Start


@dataclass(frozen=True, kw_only=True)
class Restriction(Parametrization):
    """Takes the weight's place; ``begin`` starts from the weight where there is one, else from random numbers."""

    relative: ClassVar[bool] = False


def beginning(start: Start) -> torch.Tensor:
    """The weight, or uniform numbers in ±1/√columns as linear layers begin with."""
    if start.weight is not None:
        return start.weight.float().clone()
    bound = 1 / math.sqrt(max(1, start.shape[1]))
    return torch.empty(start.shape).uniform_(-bound, bound, generator=start.chance)
