"""Visual prompt tuning."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from typing_extensions import override

from modicum.adapt._added import widths
from modicum.core.aside import Aside, Call, Spot
from modicum.core.errors import ModelError
from modicum.core.method import Paper
from modicum.core.parametrization import State
from modicum.core.settings import param
from modicum.models.structure import find_blocks
from modicum.models.weights import Weights


@dataclass(frozen=True, kw_only=True)
class Vpt(Aside):
    """Trained rows stand behind the stream that a block is given, and are cut from what it gives: prompts for models that take no token ids.

    ``block([stream ; rows])`` without the last rows: given to the first block, and on through all, or anew in each (``deep``), as a prefix.

    *Shapes:* rows (tokens, width).

    *Needs and cost:* no statistics; tokens · width trained numbers, of each block where deep, and tokens more to attend to. No weight can hold it.

    *Reduces to:* no setting gives the base, for attention always meets what stands behind.

    *Raises:* ``ModelError`` for a model without blocks, for one that takes token ids, and where blocks are given no stream of tokens, or masks and
    positions of its length.

    *Differences from the paper:* rows stand behind the stream, not between its class token and patches: places are known by embeddings alone.

    Example:
        >>> str(Vpt(tokens=4, deep=True))
        'vpt tokens=4 deep=true'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Visual Prompt Tuning",
        arxiv="2203.12119",
        year=2022,
        authors="Menglin Jia and Luming Tang and Bor-Chun Chen and Claire Cardie and Serge Belongie and Bharath Hariharan and Ser-Nam Lim",
    )
    rate: ClassVar[float] = 3e-2

    tokens: int = param(8, "rows behind the stream", between=(1, 65536), dial=True)
    deep: bool = param(False, "whether each block has rows of its own")

    @override
    def places(self, root: nn.Module) -> list[str]:
        """All blocks of a model that takes no token ids."""
        if "input_ids" in inspect.signature(root.forward).parameters:
            raise ModelError(
                f"{type(root).__name__}: must take no token ids for {self} to stand in its blocks, does. Use prompt or prefix."
            )
        found = list(find_blocks(root, Weights(root))) if widths(root) else []
        if not found:
            raise ModelError(f"{type(root).__name__}: must have blocks of layers for {self} to stand in, has none.")
        return found

    @override
    def begin(self, spot: Spot) -> State:
        """Small random rows; blocks behind the first have none of their own where it is not deep."""
        wide, first = next(iter(widths(spot.root).values())), self.places(spot.root)[0]
        own = self.deep or spot.name == first
        return State({"rows": 0.02 * torch.randn(self.tokens, wide, generator=spot.chance)} if own else {})

    @override
    def around(self, state: State, call: Call) -> Any:
        """A call of the block on a longer stream; what goes on behind the first is in the call's memory."""
        stream, *rest = call.args
        if stream.ndim != 3 or any(stream.shape[1] in given.shape for given in _tensors((*rest, *call.named.values()))):
            raise ModelError(
                f"{call.name}: must be given a stream (rows, tokens, width) without masks or positions for {self}, is given {tuple(stream.shape)} "
                "with others of its length."
            )
        added = state["rows"].to(stream.dtype).expand(len(stream), -1, -1) if "rows" in state.trained else call.memory["rows"]
        found = call.forward(torch.cat([stream, added], 1), *rest, **call.named)
        given = found[0] if isinstance(found, tuple) else found
        call.memory["rows"] = given[:, stream.shape[1] :]
        kept = given[:, : stream.shape[1]]
        return (kept, *found[1:]) if isinstance(found, tuple) else kept


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)
