"""Prefix tuning."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from typing_extensions import override

from modicum.adapt._prompts import CACHES, Before, had, named, with_mask
from modicum.core.aside import Call, Spot
from modicum.core.errors import ModelError
from modicum.core.method import Paper
from modicum.core.parametrization import State
from modicum.core.settings import param


@dataclass(frozen=True, kw_only=True)
class Prefix(Before):
    """Keys and values are trained that stand before those of the inputs in every attention layer, as if a model had read something before.

    *Shapes:* keys and values (layers, heads, tokens, width of a head), of the heads that have keys.

    *Needs and cost:* no statistics; 2 · layers · heads · tokens · width trained numbers, and tokens more to attend to.

    *Reduces to:* no setting gives the base, for attention always meets what stands before.

    *Raises:* ``ModelError`` for a model that takes no cache of keys and values.

    *Differences from the paper:* keys and values themselves are trained, from small random numbers, without a network that makes them.

    Example:
        >>> str(Prefix(tokens=10))
        'prefix tokens=10'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Prefix-Tuning: Optimizing Continuous Prompts for Generation",
        arxiv="2101.00190",
        year=2021,
        authors="Xiang Lisa Li and Percy Liang",
    )
    rate: ClassVar[float] = 1e-1

    tokens: int = param(20, "keys and values before the inputs'", between=(1, 65536), dial=True)

    @override
    def places(self, root: Any) -> list[str]:
        """The whole, where it takes a cache."""
        if not set(CACHES) & set(inspect.signature(root.forward).parameters) or not hasattr(root, "config"):
            raise ModelError(f"{type(root).__name__}: must take a cache of keys and values for {self} to be in it, does not.")
        return super().places(root)

    @override
    def begin(self, spot: Spot) -> State:
        """Small random numbers."""
        config: Any = spot.root.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, heads, self.tokens, width)
        return State({name: 0.02 * torch.randn(shape, generator=spot.chance) for name in ("keys", "values")})

    @override
    def around(self, state: State, call: Call) -> Any:
        """A call whose cache holds the prefix."""
        from transformers import DynamicCache

        given = named(call)
        cache = had(given)
        if cache is None or not cache.get_seq_length():
            cache = DynamicCache() if cache is None else cache
            rows, dtype = len(next(iter(given.values()))), next(call.root.parameters()).dtype
            for layer, (keys, values) in enumerate(zip(state["keys"], state["values"])):
                cache.update(keys.to(dtype).expand(rows, -1, -1, -1), values.to(dtype).expand(rows, -1, -1, -1), layer)
        name = next(name for name in CACHES if name in inspect.signature(call.forward).parameters)
        return call.forward(**{**with_mask(given, self.tokens), name: cache})
