"""A model with factors that were moved from some parameters to others, and whether it is still the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from modicum.models.model import Model


def with_values(model: Model, values: Mapping[str, torch.Tensor]) -> Model:
    """The same model with other values of some parameters, in modules of its own; it is known as the one it was."""
    other = model.twin()
    other.identity = model.hash()
    if callable(adopt := getattr(other.weights, "adopt", None)):
        adopt(values)
    else:
        for name, value in values.items():
            other.weights.put(name, value)
    return other


def same_outputs(one: Any, other: Any) -> bool:
    """Whether outputs are equal to the bit."""
    mine, theirs = ([value for value in tree_leaves(each) if isinstance(value, torch.Tensor)] for each in (one, other))
    return len(mine) == len(theirs) and all(map(torch.equal, mine, theirs))
