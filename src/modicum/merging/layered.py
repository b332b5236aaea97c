"""Layers of checkpoints put one after the other, as if they were one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from typing_extensions import override

from modicum.core.errors import ModelError, SettingError, quoted
from modicum.merging.sources import Composed, Source, Stored

# The number of a layer: the first number in a name that other parts surround.
LAYER = re.compile(r"^(.*?\.)(\d+)(\..*)$")


@dataclass
class Layered(Composed):
    """Layer by layer where it comes from; what stands before the layers is the first one's model's, what stands behind the last one's.

    ``parts`` (source, number of the layer there) by the layer's number here.
    """

    parts: Sequence[tuple[Source, int]]
    label: str

    @property
    @override
    def digest(self) -> str:  # type: ignore[override]
        return hashlib.sha256(repr([(source.digest, layer) for source, layer in self.parts]).encode()).hexdigest()

    @cached_property
    @override
    def homes(self) -> dict[str, tuple[Source, str]]:
        found: dict[str, tuple[Source, str]] = {}
        first, last = self.parts[0][0], self.parts[-1][0]
        stacks = lambda source: {match[1] for name in source.names() if (match := LAYER.match(name))}
        layers_met = False
        for name in first.names():
            if (match := LAYER.match(name)) is None:
                found[name] = ((last if name in set(last.names()) and _behind(name) else first), name)
            layers_met |= match is not None
        if not layers_met:
            raise ModelError(f"{first.label}: must have numbered layers to be sliced, has none.")
        if len(stacks(first)) > 1:
            raise ModelError(f"{first.label}: must have one stack of layers to be sliced, has {' and '.join(sorted(stacks(first)))}.")
        for source in {id(source): source for source, _ in self.parts}.values():
            if stacks(source) != stacks(first):
                said = [" and ".join(sorted(stacks(each))) or "nothing" for each in (first, source)]
                raise ModelError(f"{source.label}: its layers must be called {said[0]} as those of {first.label}, are {said[1]}.")
        for place, (source, layer) in enumerate(self.parts):
            mine = [(match, name) for name in source.names() if (match := LAYER.match(name)) and int(match[2]) == layer]
            if not mine:
                raise SettingError(f"{source.label}: has no layer {layer}. Name layers from 0 to one less than it has.")
            found.update({f"{match[1]}{place}{match[3]}": (source, name) for match, name in mine})
        return found


def _behind(name: str) -> bool:
    """Whether a tensor that is in no layer stands behind them: norms and heads, not embeddings."""
    return not re.search(r"(embed|wte|wpe|tok)", name)


def with_layers(config: Mapping[str, Any], parts: Sequence[tuple[Source, int]]) -> dict[str, Any]:
    """A config for so many layers. Raises ``ModelError`` where it does not say how many it has, or lists what each is and is of several models."""
    body = json.loads(json.dumps(config))
    keys = [key for key in ("num_hidden_layers", "n_layer", "num_layers", "n_layers") if isinstance(body.get(key), int)]
    if not keys:
        raise ModelError("config: must say how many layers there are (num_hidden_layers), does not. Merge it without slices.")
    before = body[keys[0]]
    for key, value in list(body.items()):
        if key in keys:
            body[key] = len(parts)
        elif key == "mlp_only_layers" and isinstance(value, list):
            body[key] = [place for place, (_, layer) in enumerate(parts) if layer in value]
        elif isinstance(value, list) and len(value) == before and len(parts) != before:
            if max(layer for _, layer in parts) >= before:
                raise ModelError(f"config: {quoted(key)} says something of each layer, and a slice has layers that it does not know.")
            body[key] = [value[layer] for _, layer in parts]
    return body


def config_of(source: Source) -> Mapping[str, Any]:
    """What stands in the config of a checkpoint; nothing where it has none."""
    while isinstance(source, Layered):
        source = source.parts[0][0]
    if not isinstance(source, Stored) or not (source.directory / "config.json").is_file():
        return {}
    return json.loads((source.directory / "config.json").read_text(encoding="utf-8"))
