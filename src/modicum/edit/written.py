"""What a model was taught, as a delta, and the model with its weights as the delta makes them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from modicum.delta import Beside, Delta
from modicum.delta.beside import fingerprint
from modicum.edit.taught import Taught
from modicum.forms import Base, Dense, Form, LowRank, Sum
from modicum.models.trainable import trainable

# Of the largest singular value of a change: what is smaller is left out.
_NOTHING = 1e-5


def change(pupil: Taught, dtypes: Mapping[str, torch.dtype], *, base: str = "") -> Delta:
    """What a model was taught as a delta: a product where that is smaller, else the whole change."""
    forms: dict[str, Form] = {}
    for name, found in pupil.changes.items():
        if bool(found.any()):
            leaf = Base((found.shape[0], found.shape[1]), dtypes[name], name)
            forms[name] = Sum((leaf, _stored(found)))
    asides = [Beside(place, "codebook", entries, _beneath(pupil, place, dtypes)) for place, entries in pupil.asides.items()]
    return Delta(forms, base=base, asides=tuple(asides))


def _beneath(pupil: Taught, place: str, dtypes: Mapping[str, torch.dtype]) -> str:
    """What stands beneath an aside, as it is stored."""
    stored = copy.deepcopy(pupil.module.get_submodule(place))
    for name, parameter in stored.named_parameters():
        parameter.data = parameter.data.to(dtypes[f"{place}.{name}"])
    return fingerprint(stored)


def _stored(change: torch.Tensor) -> Form:
    left, sizes, right = torch.linalg.svd(change.double(), full_matrices=False)
    kept = int((sizes > _NOTHING * sizes[0]).sum())
    if kept * sum(change.shape) >= change.numel():
        return Dense(change)
    root = sizes[:kept].sqrt()
    return LowRank((left[:, :kept] * root).float().contiguous(), (root[:, None] * right[:kept]).float().contiguous())


@contextmanager
def as_stored(pupil: Taught, delta: Delta, weights: Callable[[str], torch.Tensor]) -> Iterator[Taught]:
    """Inside, the model has the weights that a delta makes of stored ones, rounded to their dtype, in place of what it was taught beside them."""
    module, before = pupil.module, dict[str, torch.Tensor]()
    learnt, pupil.changes = pupil.changes, {}
    units = trainable(module)
    try:
        for name in delta.forms:
            parameter: nn.Parameter = module.get_parameter(units[name].parameter)
            before[name] = parameter.data
            parameter.data = units[name].stored(delta.weight(name, weights(name)).float()).reshape(parameter.shape)
        yield pupil
    finally:
        for name, value in before.items():
            module.get_parameter(units[name].parameter).data = value
        pupil.changes = learnt
