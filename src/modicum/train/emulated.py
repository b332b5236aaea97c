"""A smaller stand-in for a model, on which adapters of its ends are tuned before they are plugged into the whole (CRaSh, arXiv 2310.15477)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from modicum.core.errors import ModelError, SettingError
from modicum.data.splits import Batch, call
from modicum.models.structure import find_blocks
from modicum.models.weights import Weights


@contextmanager
def emulated(module: nn.Module, batches: Sequence[Batch], keep: int, *, ends: int = 1, shared: bool = True) -> Iterator[dict[str, str]]:
    """Inside, of a module's middle blocks ``keep`` stand for all: neighbours whose outputs are most alike are clustered, and the middle one of a
    cluster takes the place of the others, or of a cluster stands alone where they are not ``shared``.

    ``ends`` blocks at either end stay, for adapters to be trained on; what is trained there is a delta of the whole module, since names are its own.
    Gives for each middle block the one that stands for it. Outside the module is what it was.

    Raises ``ModelError`` for a module without one list of blocks, ``SettingError`` where fewer than ``keep`` lie between the ends.
    """
    found = find_blocks(module, Weights(module))
    lists = {block.list_name for block in found.values()}
    if len(lists) != 1:
        raise ModelError(f"{type(module).__name__}: must have one list of blocks to be emulated, has {len(lists)}.")
    names = list(found)
    middle = names[ends : len(names) - ends]
    if not 1 <= keep <= len(middle):
        raise SettingError(f"emulated: keep must be from 1 to the {len(middle)} blocks between the ends, got {keep}.")
    place = lists.pop()
    owner, _, attribute = place.rpartition(".")
    parent, whole = module.get_submodule(owner), module.get_submodule(place)
    assert isinstance(whole, nn.ModuleList)
    clusters = clustered(_outputs(module, middle, batches), keep)
    stands = {middle[at]: middle[cluster[len(cluster) // 2]] for cluster in clusters for at in cluster}
    used = [stands.get(name, name) for name in names if shared or stands.get(name, name) == name]
    setattr(parent, attribute, nn.ModuleList([module.get_submodule(name) for name in used]))
    try:
        yield stands
    finally:
        setattr(parent, attribute, whole)


def clustered(outputs: Sequence[torch.Tensor], keep: int) -> list[list[int]]:
    """Neighbours joined until ``keep`` clusters are left, the most alike first, by the mean linear CKA of their members' outputs (tokens, width)."""
    alike = [[cka(one, other) for other in outputs] for one in outputs]
    clusters = [[at] for at in range(len(outputs))]
    while len(clusters) > keep:
        means = [
            sum(alike[a][b] for a in left for b in right) / (len(left) * len(right)) for left, right in pairwise(clusters)
        ]  # fmt: skip
        at = max(range(len(means)), key=means.__getitem__)
        clusters[at : at + 2] = [clusters[at] + clusters[at + 1]]
    return clusters


def cka(one: torch.Tensor, other: torch.Tensor) -> float:
    """Linear centred kernel alignment of two sets of outputs (tokens, width) (arXiv 1905.00414): 1 where one is a turned and scaled other."""
    x, y = (each.double() - each.double().mean(0) for each in (one, other))
    return float((x.T @ y).norm().square() / ((x.T @ x).norm() * (y.T @ y).norm()).clamp_min(1e-300))


def _outputs(module: nn.Module, names: Sequence[str], batches: Sequence[Batch]) -> list[torch.Tensor]:
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    def keeps(name: str) -> Any:
        return lambda _, args, found: seen[name].append((found if isinstance(found, torch.Tensor) else found[0]).flatten(0, -2).float())

    hooks = [module.get_submodule(name).register_forward_hook(keeps(name)) for name in names]
    try:
        with torch.no_grad():
            for batch in batches:
                call(module, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(seen[name]) for name in names]
