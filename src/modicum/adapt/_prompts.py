"""Trained inputs: what stands before a model's own, and is cut from what it gives."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, cast

import torch
from typing_extensions import override

from modicum.core.aside import Aside, Call, Spot
from modicum.core.errors import ModelError
from modicum.core.parametrization import State

IDS, EMBEDDED, MASK, LABELS = "input_ids", "inputs_embeds", "attention_mask", "labels"
# What a model calls the keys and values of what it has read.
CACHES = ("cache", "past_key_values")


@dataclass(frozen=True, kw_only=True)
class Before(Aside):
    """Stands before the inputs of a whole model that takes token ids."""

    @override
    def places(self, root: Any) -> list[str]:
        names = inspect.signature(root.forward).parameters
        if IDS not in names or EMBEDDED not in names or getattr(root, "get_input_embeddings", lambda: None)() is None:
            raise ModelError(f"{type(root).__name__}: must take {IDS} and {EMBEDDED} for {self} to stand before its inputs, does not.")
        return [""]


@dataclass(frozen=True, kw_only=True)
class SoftPrompt(Before):
    """Rows before the embedded inputs; files say how ``rows`` (tokens, width) are made."""

    def rows(self, state: State) -> torch.Tensor:
        """What stands before the inputs, (tokens, width)."""
        raise NotImplementedError

    @override
    def around(self, state: State, call: Call) -> Any:
        given, prompt = named(call), self.rows(state)
        if (seen := had(given)) is not None and seen.get_seq_length():
            return call.forward(**with_mask(given, len(prompt)))
        ids, embedded = given.pop(IDS, None), given.pop(EMBEDDED, None)
        embedded = cast(Any, call.root).get_input_embeddings()(ids) if embedded is None else embedded
        both = torch.cat([prompt.to(embedded.dtype).expand(len(embedded), -1, -1), embedded], 1)
        found = call.forward(**{EMBEDDED: both}, **with_mask(given, len(prompt)))
        return _cut(found, len(prompt), both.shape[1])


def named(call: Call) -> dict[str, Any]:
    """What a model was given, by name."""
    bound = inspect.signature(call.forward).bind(*call.args, **call.named)
    extra = {name: value for name, value in bound.arguments.items() if name != "kwargs"}
    return {name: value for name, value in {**extra, **bound.arguments.get("kwargs", {})}.items() if value is not None}


def had(given: dict[str, Any]) -> Any:
    """The cache among what was given, or None."""
    return next((given[name] for name in CACHES if given.get(name) is not None), None)


def with_mask(given: dict[str, Any], count: int) -> dict[str, Any]:
    """What was given, for inputs that are longer by ``count`` in front; positions are left to the model."""
    given = {name: value for name, value in given.items() if name not in ("position_ids", "cache_position")}
    for name, filler in ((MASK, 1), (LABELS, -100)):
        if name in given and given[name].ndim == 2:
            given[name] = torch.cat([given[name].new_full((len(given[name]), count), filler), given[name]], 1)
    return given


def _cut(found: Any, count: int, whole: int) -> Any:
    """Tensors of what a model gave, (rows, tokens, ...) without the first ``count`` tokens."""
    cut = lambda value: value[:, count:] if isinstance(value, torch.Tensor) and value.ndim == 3 and value.shape[1] == whole else value
    if isinstance(found, dict):
        for name, value in list(found.items()):
            found[name] = cut(value)
        return found
    return tuple(map(cut, found)) if isinstance(found, tuple) else cut(found)


def embedded(spot: Spot, count: int) -> torch.Tensor:
    """Rows of the model's table of embeddings (count, width), drawn at random."""
    table = cast(Any, spot.root).get_input_embeddings().weight.detach()
    return table[torch.randint(len(table), (count,), generator=spot.chance)].float()
