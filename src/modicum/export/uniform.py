"""Configs of narrower models: which of a config's numbers give the shapes that cuts leave, found by building the model without weights."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from fractions import Fraction
from typing import Any

from torch import nn

from modicum.core.errors import ModelError
from modicum.export.narrow import COUNTS, Incision
from modicum.models.open import skeleton
from modicum.sweep import Script

Shape = tuple[int, ...]


def remaining_shapes(module: nn.Module, incisions: Mapping[str, Incision]) -> dict[str, Shape]:
    """Shape of every parameter of a model, by name, as cuts leave it; biases follow the rows of their weight."""
    shapes = {name: tuple(value.shape) for name, value in module.named_parameters(remove_duplicate=False)}
    for incision in incisions.values():
        shapes[incision.unit.parameter] = incision.narrow.stored_shape
        if (bias := f"{incision.unit.module}.bias") in shapes:
            shapes[bias] = (incision.shape[0],)
    return shapes


def narrower(module: nn.Module, config: Any, incisions: Mapping[str, Incision], dropped: Collection[str] = ()) -> Any | None:
    """The config of a model that has the shapes cuts leave, and no other difference; None where no number of the config gives them.

    Blocks that are ``dropped`` may have any shapes; the config still counts them.

    Tried are every number of the config that is a width which changes, and all its counts of heads in proportion. That the narrower model
    computes the same is for its loader to show.
    """
    there = lambda shapes: {name: shape for name, shape in shapes.items() if not Script.home(name, dropped)}
    wanted = there(remaining_shapes(module, incisions))
    for changes in _candidates(_text(config), incisions):
        tried = copy.deepcopy(config)
        try:
            for name, value in changes.items():
                _set(_text(tried), name, value)
            built = skeleton(type(module), copy.deepcopy(tried))
            keeps_its_rules(tried)
        except ModelError:  # numbers the class was not made for
            continue
        if there(remaining_shapes(built, {})) == wanted:
            return tried
    return None


def _candidates(config: Any, incisions: Mapping[str, Incision]) -> Iterator[dict[str, int]]:
    """Changes of a config that may give the widths, the fewest first."""
    widths = {pair for incision in incisions.values() for pair in zip(incision.unit.shape, incision.shape) if pair[0] != pair[1]}
    heads = [{}, *(counts for share in {Fraction(new, old) for old, new in widths} if (counts := _heads(config, share)))]
    numbers = {name: value for name, value in vars(config).items() if type(value) is int and name not in COUNTS}
    single = [{}, *({name: new} for old, new in sorted(widths) for name, value in numbers.items() if value == old)]
    yield from ({**one, **other} for one in heads for other in single if one or other)


def _heads(config: Any, share: Fraction) -> dict[str, int]:
    """All counts of heads times ``share``, each head as wide as before; nothing where a count would be no whole number."""
    counts = {name: value for name in COUNTS if type(value := getattr(config, name, None)) is int}
    found = {name: value * share for name, value in counts.items()}
    if not found or any(value.denominator > 1 or value < 1 for value in found.values()):
        return {}
    whole = {name: int(value) for name, value in found.items()}
    width, count = getattr(config, "hidden_size", None), counts.get("num_attention_heads")
    if width and count:  # many read a width that they do not name
        whole["head_dim"] = getattr(config, "head_dim", None) or width // count
    return whole


def _set(config: Any, name: str, value: int) -> None:
    """Change a number of a config. Raises ``ModelError`` for one that it computes from others."""
    try:
        setattr(config, name, value)
    except AttributeError as error:
        raise ModelError(f"config: {name} cannot be {value} ({error}).") from None


def keeps_its_rules(config: Any) -> None:
    """Raise ``ModelError`` for numbers that the config's own rules refuse, as they would when it is saved or read."""
    try:
        if callable(rules := getattr(config, "validate", None)):
            rules()
    except Exception as error:  # the rules of a hundred architectures
        raise ModelError(f"config: cannot be ({error}).") from None


def _text(config: Any) -> Any:
    """The part of a config that describes the text model."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config
