"""A small model of the same kind as a large one: fewer blocks, of each nature some, and narrower; found by trying, with random weights."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from modicum.core.errors import ModicumError
from modicum.core.unit import unnumbered
from modicum.data.splits import Batch, call
from modicum.export.depth import said_of, shallower
from modicum.export.uniform import keeps_its_rules
from modicum.models.model import Model
from modicum.models.open import open_model, skeleton
from modicum.models.quiet import hushed
from modicum.models.structure import kind_of
from modicum.sweep import Script, rehearse

# Parameters up to which a model is small, and blocks of each nature that a small one keeps.
SMALL = 10_000_000
_ALIKE = 2
# Least width of the small model's hidden states; by what heads are narrowed, and how many experts are left: the first that work.
_WIDTH, _HEADS, _LEFT = 64, (4, 8, 2, 1), (8, 32, 1 << 20)
_TOKENS = 24
# What numbers of configs are: places, counts, experts, heads' widths; all others that are large are widths.
_PLACE = re.compile(r"(_id|_ids|_index|_idx|token|seed|theta|base|offset|period|step|interval|every|version|max_distance)s?$")
_COUNT = re.compile(r"(layers?|depths?|blocks|stages|labels|groups?|per_tok(en)?|top_?k|k)$")
_EXPERTS = re.compile(r"experts?(_num)?$")
_HEAD_COUNT = re.compile(r"heads?(_kv)?$")
_HEAD = re.compile(r"(head_dim|head_size|_rank|d_kv|rotary_dim|kv_channels)$")
_LEAST = 16


def small(model: Model, script: Script, batch: Batch) -> tuple[Model, Script, Batch] | None:
    """A small model of the same class and layer kinds, its script, and the batch it was rehearsed with; None where none was found.

    Only for models that take tokens alone: of other inputs nobody knows which config makes them small.
    """
    if not _tokens_only(batch):
        return None
    for config in _configs(model):
        with suppress(*UNSUITED):
            built = _filled(model, config)
            row = _fitting(batch, built)
            with torch.no_grad():
                call(built, row)
            found = open_model(built)
            seen = rehearse(found, row)
            seen.outputs = script.outputs
            return found, seen, row
    return None


# What classes raise at numbers that they were not made for.
UNSUITED = (ModicumError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError)


def _tokens_only(batch: Batch) -> bool:
    return (
        isinstance(batch, Mapping)
        and "input_ids" in batch
        and all(value.ndim == 2 and not value.is_floating_point() for value in batch.values())
    )


def _fitting(batch: Batch, built: Any) -> Batch:
    """One row of the batch with a few tokens, all in the small vocabulary."""
    most = built.get_input_embeddings().weight.shape[0]
    assert isinstance(batch, Mapping)
    return {name: value[:1, :_TOKENS] % most if value.dtype != torch.bool else value[:1, :_TOKENS] for name, value in batch.items()}


# Configs


def _configs(model: Model) -> Iterator[Any]:
    """Configs that may be those of small models, without weights already."""
    shallow = _shallow(model)
    wide = model.module.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    most = next((1 << power for power in range(12, 0, -1) if wide % (1 << power) == 0 and wide >> power >= _WIDTH), 1)
    lefts = _LEFT if any(_EXPERTS.search(name) for part in parts_of(shallow) for name in vars(part)) else _LEFT[-1:]
    for by, heads, experts in itertools.product((most, most // 2, most // 4), _HEADS, lefts):
        if by < max(heads, 2):
            continue
        config = copy.deepcopy(shallow)
        for part in parts_of(config):
            narrow(part, by, heads, experts)
        with suppress(*UNSUITED):
            keeps_its_rules(config)  # saving asks for them, building does not
            if sum(value.numel() for value in skeleton(type(model.module), copy.deepcopy(config)).parameters()) <= SMALL:
                yield config


def _shallow(model: Model) -> Any:
    """The config of a model with a few blocks of each nature, or of all blocks where the config cannot describe that."""
    seen: Counter[str] = Counter()
    gone = set()
    for name in model.blocks:
        nature = _nature(model.module.get_submodule(name))
        seen[nature] += 1
        if seen[nature] > _ALIKE:
            gone.add(name)
    found = shallower(model, model.config, frozenset(gone)) if gone else None
    return found if found is not None else model.config


def _nature(block: nn.Module) -> str:
    """What a block is: its parts, the shapes of their weights, and what they say of themselves."""
    shapes = [(name, tuple(value.shape)) for name, value in block.named_parameters()]
    said = [(name, type(part).__name__, *((key, value) for key, value in vars(part).items() if said_of(key, value)))
            for name, part in block.named_modules()]  # fmt: skip
    return repr((shapes, said))


def parts_of(config: Any) -> Iterator[Any]:
    """A config and the configs inside."""
    yield config
    for value in list(vars(config).values()):
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield from parts_of(value)


def narrow(config: Any, by: int, heads: int, experts: int) -> None:
    """Divide a config's numbers by what they are."""
    for name, value in list(vars(config).items()):
        if name.startswith("_"):
            continue
        if type(value) is int:
            setattr(config, name, _less(name, value, by, heads, experts))
        elif isinstance(value, list | tuple) and value and all(type(item) is int and item >= _LEAST * by for item in value):
            setattr(config, name, type(value)(_less(name, item, by, heads, experts) for item in value))
    vocabulary = getattr(config, "vocab_size", None)
    for name, value in list(vars(config).items()):
        if type(vocabulary) is int and type(value) is int and name.endswith("_token_id") and value >= vocabulary:
            setattr(config, name, value % vocabulary)


def _less(name: str, value: int, by: int, heads: int, experts: int) -> int:
    if _PLACE.search(name):
        return value
    if _EXPERTS.search(name):
        return min(value, experts)
    if _HEAD_COUNT.search(name):
        return max(1, value * heads // by)
    if _COUNT.search(name) or value < 2 * _LEAST:
        return value
    share = heads if _HEAD.search(name) else by
    return max(value // share, 2) if value % share == 0 else value


# Weights


def _filled(model: Model, config: Any) -> nn.Module:
    """The model of a config with random weights whose products neither vanish nor grow, in the dtypes of the large one's."""
    with torch.random.fork_rng(), hushed():
        torch.manual_seed(0)
        built = type(model.module)(copy.deepcopy(config)).eval()
        dtypes = {unnumbered(name): model.weights.dtype(first) for name, first in model.weights.first.items()}
        owners = {id(part._parameters.get("weight")) for part in built.modules() if kind_of(part) is not None}
        for name, value in built.named_parameters():
            if value.ndim == 1:
                value.data.add_(torch.randn(value.shape), alpha=0.1)
            elif id(value) in owners or value.ndim == 3:
                inputs = value[0].numel() if id(value) in owners else value.shape[-1]
                value.data.normal_(0, 1 / math.sqrt(inputs))
            value.data = value.data.to(dtypes.get(unnumbered(name), model.dtype))
    return built
