"""Weights that a class of Transformers computes when it is made and never saves, such as tables of positions."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn


def unsaved(module: Any, name: str) -> torch.Tensor | None:
    """The value of a parameter that the class of ``module`` says it does not save; None for any other, and where it is not the same twice."""
    if not any(re.search(pattern, name) for pattern in getattr(module, "_keys_to_ignore_on_save", None) or ()):
        return None
    one, other = (_initialized(module, name, seed) for seed in (0, 1))
    return one if torch.equal(one, other) else None


def _initialized(module: Any, name: str, seed: int) -> torch.Tensor:
    """What the class makes of the parameter, which stays as it was."""
    prefix, _, attribute = name.rpartition(".")
    owner = module.get_submodule(prefix)
    shown = owner._parameters[attribute]
    owner._parameters[attribute] = nn.Parameter(torch.full(shown.shape, torch.nan, dtype=shown.dtype), requires_grad=False)
    try:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            module._init_weights(owner)
        return owner._parameters[attribute].detach()
    finally:
        owner._parameters[attribute] = shown
