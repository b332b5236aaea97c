"""Which weights follow the vocabulary, found by giving the model's class another one, and a checkpoint with fewer of their rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.core.errors import ModelError
from modicum.core.tensorfile import Shards, TensorFile
from modicum.core.tensorwriter import TensorWriter
from modicum.models.weights import CheckpointWeights

Axes = dict[str, int]
"""The axis along which a tensor has one entry per token, by the tensor's name."""

_INDEX = "model.safetensors.index.json"
_STEP = 8192  # rows read at once
_KEPT_SIZES = ("type_vocab_size",)  # counts of segments, not of tokens


def vocabulary_rows(module: nn.Module, who: str) -> int:
    """Tokens the input embedding has a row for. Raises ``ModelError`` where there is none."""
    try:
        weight = module.get_input_embeddings().weight  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        weight = None
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
        raise ModelError(f"{who}: must have one input embedding of tokens, {type(module).__name__} tells of none. Keep this vocabulary.")
    return int(weight.shape[0])


def size_fields(config: Any, rows: int, who: str) -> list[tuple[str, ...]]:
    """Paths of the config's fields that say how many tokens there are. Raises ``ModelError`` where they disagree: two vocabularies."""
    found = list(_sizes(config.to_dict()))
    for path, size in found:
        if size != rows:
            raise ModelError(
                f"{who}: must have one vocabulary, its input embedding has {rows} tokens and its config says "
                f"{'.'.join(path)} = {size}. Keep this vocabulary."
            )
    if not found:
        raise ModelError(f"{who}: its config must say how many tokens there are, has no vocab_size. Keep this vocabulary.")
    return [path for path, _ in found]


def _sizes(value: Mapping[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    for name, part in value.items():
        if isinstance(part, dict):
            yield from _sizes(part, (*at, name))
        elif "vocab" in str(name) and name not in _KEPT_SIZES and isinstance(part, int) and not isinstance(part, bool):
            yield (*at, name), part


def resized_config(raw: Mapping[str, Any], fields: Sequence[tuple[str, ...]], rows: int) -> dict[str, Any]:
    """A ``config.json`` that says ``rows`` at each of ``fields``; what it left to defaults is written out."""
    made = json.loads(json.dumps(raw))
    for *sections, name in fields:
        place = made
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = rows
    return made


def vocabulary_axes(module: nn.Module, other: nn.Module, rows: int, count: int, who: str) -> Axes:
    """Axes of ``module``'s stored tensors that follow the vocabulary: those that differ in ``other``, built with ``count`` tokens.

    Raises ``ModelError`` where a tensor follows it in another way than one entry per token, or the embedding or head does not follow.
    """
    ours, theirs = module.state_dict(), other.state_dict()
    if ours.keys() != theirs.keys():
        raise ModelError(f"{who}: must have the same weights for every vocabulary, lacks {min(ours.keys() ^ theirs.keys())} for another.")
    axes: Axes = {}
    for name, tensor in ours.items():
        before, after = tuple(tensor.shape), tuple(theirs[name].shape)
        changed = [axis for axis, (a, b) in enumerate(zip(before, after)) if a != b]
        if before != after:
            if len(before) != len(after) or len(changed) != 1 or (before[changed[0]], after[changed[0]]) != (rows, count):
                raise ModelError(f"{who}: {name} must have an entry per token, goes from {before} to {after}. Keep this vocabulary.")
            axes[name] = changed[0]
    _require_embeddings(module, axes, who)
    return axes


def _require_embeddings(module: nn.Module, axes: Axes, who: str) -> None:
    ends = {id(parameter) for name, parameter in module.named_parameters(remove_duplicate=False) if name in axes}
    for get in ("get_input_embeddings", "get_output_embeddings"):
        owner = getattr(module, get)()
        if owner is not None and isinstance(weight := getattr(owner, "weight", None), nn.Parameter) and id(weight) not in ends:
            raise ModelError(f"{who}: the weight of {get}() must follow the config's vocabulary, does not. Keep this vocabulary.")


def stored_axes(weights: CheckpointWeights, axes: Axes, rows: int, who: str) -> Axes:
    """``axes`` by the names on disk.

    Raises ``ModelError`` where such a tensor is stored in another layout, or where a tensor that is no part of the model has as many
    entries as there are tokens, so that nobody can say whether it belongs to them.
    """
    for name in axes:
        if weights.converted(name):
            raise ModelError(f"{who}: {name} must be stored as it is used, is converted when read. Save the model anew with Transformers.")
    stored: Axes = {}
    part = {name for name, _ in (*weights.module.named_parameters(remove_duplicate=False), *weights.module.named_buffers())}
    for key, target, converted in weights.stored():
        if target in axes:
            stored[key] = axes[target]
        elif not converted and target not in part and rows in weights.shards.entry(key).shape:
            raise ModelError(
                f"{who}: {key} is no part of {type(weights.module).__name__} and has an axis of {rows}, as many as there are tokens. "
                "Load the model and save it anew, which leaves it out."
            )
    return stored


def write_rows(shards: Shards, out: Path, axes: Axes, kept: Sequence[int], count: int) -> int:
    """Write the checkpoint's files anew with the ``kept`` entries of the tensors in ``axes``, zeros up to ``count``, and all else as it is.

    Needs and cost: one tensor in memory at a time; of those with a row per token the rows kept. Returns the bytes of the files.
    """
    single = [path.name for path in shards.files] == ["model.safetensors"]
    index = None if single else json.loads((shards.directory / _INDEX).read_bytes())
    stored = 0
    for path in shards.files:
        with TensorFile(path) as file:
            names = [name for name in file.entries if index is None or index["weight_map"].get(name) == path.name]
            shapes = {name: _shape(file.entries[name].shape, axes.get(name), count) for name in names}
            entries = {name: (file.entries[name].dtype, shapes[name]) for name in names}
            with TensorWriter(out / path.name, entries, file.metadata or None) as writer:
                for name in names:
                    writer.write(name, _gathered(file, name, axes[name], kept, count) if name in axes else file.read(name))
                stored += sum(entry.nbytes for entry in writer.entries.values())
    if index is not None:
        facts = {name: fact for name, fact in index.get("metadata", {}).items() if name != "total_parameters"}
        index["metadata"] = facts | {"total_size": stored}
        (out / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return sum((out / path.name).stat().st_size for path in shards.files)


def _shape(shape: tuple[int, ...], axis: int | None, count: int) -> tuple[int, ...]:
    return tuple(count if place == axis else size for place, size in enumerate(shape))


def _gathered(file: TensorFile, name: str, axis: int, kept: Sequence[int], count: int) -> torch.Tensor:
    entry, chosen = file.entries[name], torch.tensor(kept)
    made = torch.zeros(_shape(entry.shape, axis, count), dtype=entry.dtype)
    if axis:
        made.narrow(axis, 0, len(kept)).copy_(file.read(name).index_select(axis, chosen))
        return made
    for start in range(0, entry.shape[0], _STEP):
        stop = min(start + _STEP, entry.shape[0])
        first, last = torch.searchsorted(chosen, torch.tensor([start, stop])).tolist()
        if first < last:
            made[first:last] = file.read_rows(name, start, stop)[chosen[first:last] - start]
    return made
