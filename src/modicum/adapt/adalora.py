"""AdaLoRA."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.adapt._family import Adapter, limited, uniform
from modicum.core.method import Paper
from modicum.core.parametrization import Revision, Start, State, Step
from modicum.core.settings import param
from modicum.forms import LowRank, Sum

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Adalora(Adapter):
    """Low-rank changes begin with more directions than there is room for, and over all weights the least important ones are dropped.

    ``W + left · diag(values) · right`` with ``strength · (|leftᵀleft - I|² + |right rightᵀ - I|²)`` added to the loss. How important a direction is:
    its ``|number · gradient|``, averaged over its numbers and smoothed over time, times how uncertain that is.

    *Shapes:* left (rows, r), values (r,), right (r, columns); r begins at ``first · rank`` and is ``rank`` in the mean over weights at the end.

    *Needs and cost:* gradients of whole weights every ``every`` updates; r · (rows + columns + 1) trained numbers.

    *Reduces to:* directions of one number in every weight with ``first=1``.

    *Raises:* nothing of its own.

    *Differences from the paper:* what is dropped does not come back, and its numbers are given up; one direction stays in every weight.

    Example:
        >>> Adalora(rank=4).left_at(0.0), Adalora(rank=4).left_at(1.0)
        (6.0, 4.0)

    """

    paper: ClassVar[Paper | None] = Paper(
        title="AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
        arxiv="2303.10512",
        year=2023,
        authors="Qingru Zhang and Minshuo Chen and Alexander Bukharin and Nikos Karampatziakis and Pengcheng He and Yu Cheng and others",
    )
    rate: ClassVar[float] = 1e-1

    rank: int = param(8, "directions that a weight has in the mean at the end", between=(1, 65536), dial=True)
    first: float = param(1.5, "how many times as many there are at the beginning", between=(1.0, 100.0))
    every: int = param(10, "updates from one look at importance to the next", between=(1, 10**9))
    warmup: float = param(0.1, "share of training before directions are dropped", between=(0.0, 1.0))
    until: float = param(0.6, "share of training after which they stay", between=(0.0, 1.0))
    strength: float = param(0.1, "what the distance from orthonormal factors is multiplied by in the loss", between=(0.0, 1e6))

    def left_at(self, share: float) -> float:
        """Directions per weight in the mean at a share of training: a cubic from many to few."""
        passed = min(1.0, max(0.0, (share - self.warmup) / max(1e-9, self.until - self.warmup)))
        return self.rank * (1 + (self.first - 1) * (1 - passed) ** 3)

    @override
    def begin(self, start: Start) -> State:
        """Random factors, zero values, nothing known of importance."""
        rank = limited(math.ceil(self.first * self.rank), start)
        factors = {"left": uniform(start, rank, start.shape[0]).T.contiguous(), "right": uniform(start, rank, start.shape[1])}
        known = {"importance": torch.zeros(rank), "uncertainty": torch.zeros(rank)}
        return State(factors | {"values": torch.zeros(rank)}, known, base=start.base)

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The base and the product."""
        assert base is not None
        return base + (state["left"] * state["values"]) @ state["right"]

    @override
    def form(self, state: State) -> Form:
        """Two factors, the values within the left one."""
        assert state.base is not None
        return Sum((state.base, LowRank(state["left"] * state["values"], state["right"])))

    @override
    def product(self, base: Form | None, state: State, x: torch.Tensor, step: Step) -> torch.Tensor | None:
        """Through the inner size."""
        assert base is not None
        return base.product(x) + (x @ state["right"].to(x.dtype).T) @ (state["left"] * state["values"]).to(x.dtype).T

    @override
    def penalty(self, states: Mapping[str, State], step: Step) -> torch.Tensor | None:
        """How far factors are from orthonormal."""
        off = lambda gram: (gram - torch.eye(len(gram), device=gram.device)).square().sum()
        parts = [off(state["left"].T @ state["left"]) + off(state["right"] @ state["right"].T) for state in states.values()]
        return self.strength * torch.stack(parts).mean() if self.strength and parts else None

    @override
    def watches(self, step: Step) -> bool:
        """On the steps that look, until directions stay."""
        return step.number % self.every == 0 and step.share <= self.until

    @override
    def revise(self, states: Mapping[str, State], gradients: Mapping[str, torch.Tensor], budget: int, step: Step) -> Revision | None:
        """What is least important over all weights dropped."""
        if not gradients:
            return None
        seen = {unit: _looked(states[unit], gradient) for unit, gradient in gradients.items()}
        scores = {unit: state["importance"] * state["uncertainty"] for unit, state in seen.items()}
        room = max(len(seen), round(self.left_at(step.share) * len(seen)))
        ranked = torch.cat([score.index_fill(0, score.argmax(), math.inf) for score in scores.values()]).sort(descending=True).values
        least = ranked[min(room, len(ranked)) - 1]
        revised, kept = {}, {}
        for unit, state in seen.items():
            stays = (scores[unit] >= least).index_fill(0, scores[unit].argmax(), True).nonzero()[:, 0]
            if len(stays) == len(state["values"]):
                revised[unit] = state
                continue
            left, right = state["left"].detach(), state["right"].detach()
            revised[unit] = state.having(
                {"left": left[:, stays].contiguous(), "values": state["values"].detach()[stays], "right": right[stays].contiguous()},
                {name: state[name][stays] for name in ("importance", "uncertainty")},
            )
            places = {name: torch.arange(each.numel()).reshape(each.shape) for name, each in (("left", left), ("right", right))}
            kept[unit] = {"left": places["left"][:, stays].flatten(), "right": places["right"][stays].flatten(), "values": stays}
        return Revision(revised, kept)


def _looked(state: State, gradient: torch.Tensor) -> State:
    """Importance and uncertainty smoothed with what this gradient (rows, columns) says of each direction."""
    left, values, right = (state[name].detach() for name in ("left", "values", "right"))
    through, back = gradient @ right.T, left.T @ gradient
    of_values = (values * (left * through).sum(0)).abs()
    found = of_values + (left * through * values).abs().mean(0) + (right * back * values[:, None]).abs().mean(1)
    importance = torch.lerp(found, state["importance"], 0.85)
    return state.having(
        frozen={"importance": importance, "uncertainty": torch.lerp((found - importance).abs(), state["uncertainty"], 0.85)}
    )
