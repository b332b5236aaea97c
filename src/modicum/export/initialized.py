"""What an architecture's own initialization reads of weights: the loader calls it on compressed modules, which have none."""

from __future__ import annotations

import contextlib
import copy

import torch

from modicum.models.model import Model
from modicum.models.open import skeleton
from modicum.models.structure import kind_of
from modicum.sweep.rehearsal import weight_reads


def needs_weight(model: Model) -> bool:
    """Whether a linear's weight is read without asking whether it is there, as it is not when packed."""
    module = skeleton(type(model.module), copy.deepcopy(model.config))
    owner = next((part for part in module.modules() if kind_of(part) == "linear"), None)
    if owner is None or not callable(initialize := getattr(module, "_init_weights", None)):
        return False
    del owner._parameters["weight"]
    try:
        with torch.no_grad():
            initialize(owner)
    except AttributeError as error:
        return "weight" in str(error)
    except Exception:  # what else it cannot do without a model around it says nothing of this
        return False
    return False


def reads(model: Model) -> set[str]:
    """Modules whose weight is read through another module."""
    module = skeleton(type(model.module), copy.deepcopy(model.config))
    initialize = getattr(module, "_init_weights", None)
    found: set[str] = set()
    names = {id(owner): name for name, owner in module.named_modules() if kind_of(owner) == "linear"}
    if callable(initialize):
        with torch.no_grad(), weight_reads(names, lambda name, _: found.add(name)):
            for owner in module.modules():
                if id(owner) not in names:
                    with contextlib.suppress(Exception):  # what it does is not wanted, only what it reads
                        initialize(owner)
    return found
