"""Where a parameter's entries lie on disk: the reverse of what is done when a checkpoint is loaded."""

from __future__ import annotations

import copy
from typing import Any

import torch

from modicum.core.errors import ModelError
from modicum.models.weights import CheckpointWeights


def laid(weights: CheckpointWeights, name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """A parameter's value as the tensors that it is stored as, in their shapes and dtypes, by their names on disk; under every name that it has.

    What a conversion does to entries is found by converting their numbers: it may split, stack, merge and turn them, and where each comes from
    is where it goes back to. Raises ``ModelError`` for a parameter that is not stored, or of which a conversion computes anything.
    """
    found: dict[str, torch.Tensor] = {}
    for each in weights.names[weights.first[name]]:
        if each not in weights._made_by:
            continue
        converter, sources = weights._sources[weights._made_by[each]]
        if converter is None:
            key = sources[0][0]
            found[key] = value.reshape(weights.shards.entry(key).shape)
        else:
            found |= _reversed(weights, each, value, converter, sources)
    if not found:
        raise ModelError(f"{name}: is not stored in {weights.shards.directory}, but computed when it is loaded. Leave it as it is.")
    return {key: tensor.to(weights.shards.entry(key).dtype).contiguous() for key, tensor in found.items()}


def _reversed(
    weights: CheckpointWeights, name: str, value: torch.Tensor, converter: Any, sources: list[tuple[str, str]]
) -> dict[str, torch.Tensor]:
    from transformers.core_model_loading import dot_natural_key

    fresh, at, numbers = copy.deepcopy(converter), 0, dict[str, torch.Tensor]()
    target = weights._made_by[name]
    for key, pattern in sorted(sources, key=lambda pair: dot_natural_key(pair[0])):
        shape = weights.shards.entry(key).shape
        numbers[key] = torch.arange(at, at + torch.Size(shape).numel()).reshape(shape)
        at += numbers[key].numel()
        fresh.add_tensor(target, key, pattern, lambda value=numbers[key]: value)
    made = fresh.convert(target, model=weights.module, config=getattr(weights.module, "config", None))[name]
    places = (made[0] if isinstance(made, list) else made).reshape(-1)
    if places.dtype != torch.int64 or places.numel() != value.numel() or len(places.unique()) != len(places):
        raise ModelError(f"{name}: is computed of what is stored, not only laid out otherwise. Leave it as it is.")
    flat = torch.empty(at, dtype=value.dtype)
    met = torch.zeros(at, dtype=torch.bool).index_fill(0, places, True)
    flat[places] = value.reshape(-1)
    found = {}
    for key, each in numbers.items():
        start, stop = int(each.reshape(-1)[0]), int(each.reshape(-1)[-1]) + 1
        if not bool(met[start:stop].any()):
            continue
        mine = flat[start:stop]
        if not bool(met[start:stop].all()):
            mine = torch.where(met[start:stop], mine, weights.shards.read(key).to(value.dtype).reshape(-1))
        found[key] = mine.reshape(each.shape)
    return found
