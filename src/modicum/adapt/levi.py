"""LEVI."""

from __future__ import annotations

from contextlib import ExitStack
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
from modicum.models.structure import find_blocks, find_units
from modicum.models.weights import Weights


@dataclass(frozen=True, kw_only=True)
class Levi(Aside):
    """A small network beside a frozen one, and a head on the two at each block: answers are the model's own plus the heads' ensemble.

    ``logits + Σ softmax(a)ₗ · headₗ [streamₗ ; zₗ]`` with ``zₗ = tanh(smallₗ zₗ₋₁)`` from what the first block is given; heads begin at zero. Where
    there is one answer per row streams are means over their places.

    *Shapes:* small (rank, width) at first, then (blocks - 1, rank, rank); heads (blocks, classes, width + rank); a (blocks,).

    *Needs and cost:* no statistics; blocks · classes · (width + rank) trained numbers and the small network's. No weight can hold it.

    *Reduces to:* the base with heads at zero, where training begins.

    *Raises:* ``ModelError`` for a model without blocks, or without a layer behind them that gives its answers.

    *Differences from the paper:* the model itself rests, and its own answers are one of the views.

    Example:
        >>> str(Levi(rank=4))
        'levi rank=4'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="LEVI: Generalizable Fine-tuning via Layer-wise Ensemble of Different Views",
        arxiv="2402.04644",
        year=2024,
        authors="Yuji Roh and Qingyun Liu and Huan Gui and Zhe Yuan and Yujin Tang and Steven Euijong Whang and Liang Liu and others",
    )
    rate: ClassVar[float] = 3e-2

    rank: int = param(16, "width of the small network", between=(1, 65536), dial=True)

    @override
    def places(self, root: nn.Module) -> list[str]:
        """The whole, where it has blocks and answers behind them."""
        if not widths(root) or not _answers(root):
            raise ModelError(
                f"{type(root).__name__}: must have blocks, and a layer of answers behind them, for {self} to stand beside, has not."
            )
        return [""]

    @override
    def begin(self, spot: Spot) -> State:
        """A random small network, zero heads."""
        blocks, wide = len(find_blocks(spot.root, Weights(spot.root))), next(iter(widths(spot.root).values()))
        draw = lambda *shape: torch.randn(shape, generator=spot.chance) / shape[-1] ** 0.5
        return State(
            {
                "first": draw(self.rank, wide), "small": draw(blocks - 1, self.rank, self.rank), "shares": torch.zeros(blocks),
                "heads": torch.zeros(blocks, _answers(spot.root), wide + self.rank),
            }
        )  # fmt: skip

    @override
    def around(self, state: State, call: Call) -> Any:
        """The model's answers, and the heads' on what its blocks gave on the way."""
        given: list[torch.Tensor] = []
        made: list[torch.Tensor] = []
        blocks = [call.root.get_submodule(name) for name in find_blocks(call.root, Weights(call.root))]
        with ExitStack() as stack:
            hook = blocks[0].register_forward_pre_hook(
                lambda _, args, named: given.append(_stream(args or tuple(named.values()))), with_kwargs=True
            )
            stack.callback(hook.remove)
            for block in blocks:
                stack.callback(block.register_forward_hook(lambda _, args, found: made.append(_stream(found))).remove)
            found = call.plain()
        logits = found if isinstance(found, torch.Tensor) else found.logits
        pool = (lambda stream: stream.flatten(1, -2).mean(1)) if logits.ndim == 2 else (lambda stream: stream)
        z, total, shares = torch.tanh(pool(given[0].float()) @ state["first"].T), logits.float(), state["shares"].softmax(0)
        for at, stream in enumerate(made):
            z = z if at == 0 else torch.tanh(z @ state["small"][at - 1].T)
            total = total + shares[at] * torch.cat([pool(stream.float()), z], -1) @ state["heads"][at].T
        if isinstance(found, torch.Tensor):
            return total.to(logits.dtype)
        found.logits = total.to(logits.dtype)
        return found


def _stream(found: Any) -> torch.Tensor:
    return found if isinstance(found, torch.Tensor) else found[0]


def _answers(root: nn.Module) -> int:
    """Rows of the last matrix outside of all blocks: how many answers there are; 0 where there is none."""
    weights = Weights(root)
    inside = {name for block in find_blocks(root, weights).values() for name in block.parameters}
    rows = [unit.shape[0] for unit in find_units(root, weights).values() if unit.parameter not in inside]
    return rows[-1] if rows else 0
