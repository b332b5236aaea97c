"""Configs of shallower models: how a config's schedules follow when blocks go, found by building the model without weights."""

from __future__ import annotations

import copy
import itertools
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from torch import nn

from modicum.core.errors import ModelError
from modicum.export.placing import persistent_buffers, trim_config
from modicum.models.model import Model
from modicum.models.open import skeleton
from modicum.sweep import Script

# Lists of block numbers that are tried with and without renumbering: each doubles the tries.
_MOST = 3
# What a module says of its place, and of the machine, and nothing of what it computes.
_PLACE = {"layer_idx", "layer_id", "layer_number", "layer_index", "block_idx", "idx"}


def renumbering(dropped: frozenset[str]) -> dict[str, str]:
    """Prefix of each list of blocks → numbers that are gone from it."""
    rename: dict[str, str] = {}
    for list_name in {name.rpartition(".")[0] for name in dropped}:
        gone = sorted(int(name.rpartition(".")[2]) for name in dropped if name.rpartition(".")[0] == list_name)
        rename[f"{list_name}."] = ",".join(map(str, gone))
    return rename


def renamed(name: str, rename: Mapping[str, str]) -> str:
    """A name as it is when the blocks before it are gone."""
    for prefix, gone in rename.items():
        if name.startswith(prefix):
            place, dot, rest = name[len(prefix) :].partition(".")
            return f"{prefix}{int(place) - bisect_left(_numbered(gone), int(place))}{dot}{rest}"
    return name


@cache
def _numbered(gone: str) -> list[int]:
    return sorted(map(int, gone.split(",")))


def shallower(model: Model, config: Any, dropped: frozenset[str]) -> Any | None:
    """``config`` of the model without the blocks ``dropped``, whose remaining blocks are what they were; None where no change of it gives them.

    Compared are the names and shapes of all weights and buffers and what each remaining module says of itself: a window, a kind of
    attention, whether positions turn.
    """
    lists: dict[str, set[int]] = {}
    for name in dropped:
        lists.setdefault(name.rpartition(".")[0], set()).add(model.blocks[name].index)
    if not hasattr(config, "num_hidden_layers") or len(lists) > 1:
        return None
    (gone,) = lists.values()
    wanted = _nature(model.module, dropped)
    for tried in _trimmed(config, gone):
        try:
            built = skeleton(type(model.module), copy.deepcopy(tried))
        except ModelError:  # numbers the class was not made for
            continue
        if _nature(built, frozenset()) == wanted:
            return tried
    return None


def following(config: Any, before: Any, after: Any) -> Any:
    """``config`` with what has changed from the config ``before`` to the one ``after``."""
    made = copy.deepcopy(config)
    for name, value in vars(after).items():
        if getattr(before, name, None) != value and not name.startswith("_"):
            setattr(made, name, copy.deepcopy(value))
    return made


def _trimmed(config: Any, gone: set[int]) -> Iterator[Any]:
    """The config with its depth and per-layer lists trimmed; then also with lists of block numbers renumbered."""
    plain = copy.deepcopy(config)
    trim_config(plain, gone)
    yield plain
    text = plain.get_text_config() if hasattr(plain, "get_text_config") else plain
    depth = getattr(text, "num_hidden_layers", 0) + len(gone)
    numbers = [name for name, value in vars(text).items() if _numbers(value, depth)][:_MOST]
    for count in range(1, len(numbers) + 1):
        for names in itertools.combinations(numbers, count):
            tried = copy.deepcopy(plain)
            other = tried.get_text_config() if hasattr(tried, "get_text_config") else tried
            for name in names:
                kept = [index for index in getattr(text, name) if index not in gone]
                setattr(other, name, [index - sum(lower < index for lower in gone) for index in kept])
            yield tried


def _numbers(value: Any, depth: int) -> bool:
    """Whether a list holds numbers of blocks, each once."""
    return (
        isinstance(value, list) and all(type(index) is int and 0 <= index < depth for index in value) and len(set(value)) == len(value) > 0
    )


def _nature(module: nn.Module, dropped: frozenset[str]) -> dict[str, Any]:
    """What a model is, by the names that its parts have once ``dropped`` are gone."""
    rename = renumbering(dropped)
    found: dict[str, Any] = {}
    tensors = {**dict(module.named_parameters(remove_duplicate=False)), **persistent_buffers(module)}
    for name, tensor in tensors.items():
        if not Script.home(name, dropped):
            found[renamed(name, rename)] = tuple(tensor.shape)
    for name, part in module.named_modules():
        if name and name not in dropped and not Script.home(name, dropped):
            said = {key: value for key, value in vars(part).items() if said_of(key, value)}
            found[f"{renamed(name, rename)}:"] = (type(part), said)
    return found


def said_of(key: str, value: Any) -> bool:
    """Whether an attribute of a module says what it computes."""
    return not key.startswith("_") and key not in _PLACE and key != "training" and isinstance(value, bool | int | float | str | type(None))
