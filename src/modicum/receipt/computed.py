"""The dtype in which written models are judged: all alike, the faster one on this processor, as when they were made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from modicum.core.errors import SettingError, near
from modicum.data.splits import Batch, one_row
from modicum.export.precise import precisely
from modicum.judge.quality import plain
from modicum.measure.settings import COMPUTE
from modicum.runtime.compute import Compute, decided


@contextmanager
def computing(modules: Sequence[nn.Module], way: str, batch: Batch) -> Iterator[Compute]:
    """Inside, the modules compute in the dtype that is given: their own, or float32. Raises ``SettingError`` for one that holds less."""
    found = _decided(modules, way)
    if found.forward != "float32" or not _halves(modules):
        yield found
        return
    for module in modules:  # some loaders do their last steps on first use, and in the dtype that is stored
        for _ in plain(module, [one_row(batch)]):
            pass
    with precisely(nn.ModuleList(modules)):
        yield found


def _decided(modules: Sequence[nn.Module], way: str) -> Compute:
    if way not in COMPUTE:
        raise SettingError(f"compute {way!r}: is not known. {near(way, COMPUTE)}")
    weights = [value for module in modules for value in module.parameters() if value.is_floating_point()]
    dtypes: Counter[torch.dtype] = Counter()
    for value in weights:
        dtypes[value.dtype] += value.numel()
    half = max(_halves(modules), key=lambda dtype: dtypes[dtype], default=torch.float32)
    if way == "bfloat16" and dtypes.keys() - {torch.bfloat16}:
        raise SettingError("compute bfloat16: all weights that are judged must be in it, are not. Leave it out.")
    shapes = Counter({(len(value), value.numel() // max(1, len(value))): value.numel() for value in weights if value.ndim > 1})
    return decided(half, shapes, way)


def _halves(modules: Sequence[nn.Module]) -> set[torch.dtype]:
    """Dtypes of half precision among the weights."""
    return {value.dtype for module in modules for value in module.parameters() if value.dtype in (torch.bfloat16, torch.float16)}
