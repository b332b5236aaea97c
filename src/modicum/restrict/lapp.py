"""Layer adaptive progressive pruning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Revision, Start, State, Step
from modicum.core.settings import param
from modicum.forms import LowRank, Sum
from modicum.restrict._family import Restriction, Shapes, beginning, divided, masked

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Lapp(Restriction):
    """Each layer learns a threshold under which its rows go, so that all layers together keep a share; a thin bypass answers for what has gone.

    A row counts while its norm, relative to the layer's mean, is above the threshold; gradients pass through a sigmoid around it. The penalty
    ``strength · max(0, kept share - wanted share)²`` moves the thresholds, the wanted share falling evenly to ``keep`` at the share ``until`` of
    training; there the rows that are furthest above their thresholds stay for good, as many over all layers as ``keep`` allows.

    *Shapes:* latent (rows, columns), threshold (1,), up (rows, bypass), down (bypass, columns), trained.

    *Needs and cost:* no statistics; rows · columns trained numbers, of which the rows that stay and the bypass are stored.

    *Reduces to:* dense training with ``keep=1 bypass=0``.

    *Raises:* ``SettingError`` for a share below one weight per row.

    *Differences from the paper:* importance is a row's norm, the constraint counts weights, and the bypass is a product of low rank in the weight.

    Example:
        >>> str(Lapp(keep=0.5))
        'lapp keep=0.5'

    """

    cuts_rows: ClassVar[bool] = True
    paper: ClassVar[Paper | None] = Paper(
        title="LAPP: Layer Adaptive Progressive Pruning for Compressing CNNs from Scratch",
        arxiv="2309.14157",
        year=2023,
        authors="Pucheng Zhai and Kailing Guo and Fang Liu and Xiaofen Xing and Xiangmin Xu",
    )

    keep: float = param(0.5, "share of all weights that is kept in whole rows", between=(1e-6, 1.0), dial=True)
    bypass: int = param(1, "rank of what answers beside", between=(0, 65536))
    strength: float = param(10.0, "how strongly thresholds are driven", between=(0.0, 1e6))
    until: float = param(0.4, "share of training after which rows stay for good", between=(0.0, 1.0))
    width: float = param(0.1, "width of the sigmoid that gradients pass through", between=(1e-6, 1e3))

    @override
    def common(self, shapes: Shapes, chance: torch.Generator, seed: int) -> State | None:
        """How many entries all weights have."""
        divided(self.keep, shapes, "global")
        return State({}, {"all": torch.tensor(sum(rows * columns for rows, columns in shapes.values()))})

    @override
    def begin(self, start: Start) -> State:
        """The weight, a threshold under all rows, and a bypass that is zero."""
        latent = beginning(start)
        down = torch.randn(self.bypass, start.shape[1], generator=start.chance) / start.shape[1] ** 0.5
        threshold = ((latent.norm(dim=1) / latent.norm(dim=1).mean().clamp_min(1e-30)).min() - self.width).reshape(1)
        trained = {"latent": latent, "threshold": threshold, "up": torch.zeros(len(latent), self.bypass), "down": down}
        return State(trained, {"stays": torch.ones(start.shape[0], dtype=torch.bool), "final": torch.tensor(False)}, start.common)

    def _gates(self, state: State) -> torch.Tensor:
        """Which rows (rows,) count, with the gradient of a sigmoid; the largest always does."""
        return state["stays"].float() if bool(state["final"]) else _Gates.apply(state["latent"], state["threshold"], self.width)

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The rows that count, and the bypass."""
        kept = self._gates(state)[:, None] * state["latent"]
        return kept.addmm_(state["up"], state["down"]) if self.bypass else kept

    @override
    def density(self, step: Step) -> float:
        """What the schedule wants."""
        return 1 - (1 - self.keep) * min(1.0, step.share / max(1e-9, self.until))

    @override
    def penalty(self, states: Mapping[str, State], step: Step) -> torch.Tensor | None:
        """The square of what is kept too much."""
        if step.share >= self.until:
            return None
        kept = sum((self._gates(state).sum() * state["latent"].shape[1] for _, state in sorted(states.items())), torch.zeros(()))
        return self.strength * (kept / int(next(iter(states.values()))["all"]) - self.density(step)).clamp_min(0).square()

    @override
    def revise(self, states: Mapping[str, State], gradients: Mapping[str, torch.Tensor], budget: int, step: Step) -> Revision | None:
        """Once, the rows that stay for good: of each weight one, and then the highest that there is room for."""
        if step.number < 1 or step.share < self.until or all(bool(state["final"]) for state in states.values()):
            return None
        above = {unit: _above(state["latent"], state["threshold"])[0] for unit, state in states.items()}
        stays = {unit: torch.zeros(len(rows), dtype=torch.bool).index_fill(0, rows.argmax()[None], True) for unit, rows in above.items()}
        room = round(self.keep * int(next(iter(states.values()))["all"])) - sum(state["latent"].shape[1] for state in states.values())
        for _, unit, row in sorted((-float(value), unit, row) for unit, rows in above.items() for row, value in enumerate(rows)):
            if not stays[unit][row] and (columns := states[unit]["latent"].shape[1]) <= room:
                stays[unit][row], room = True, room - columns
        return Revision({unit: state.having(frozen={"stays": stays[unit], "final": torch.tensor(True)}) for unit, state in states.items()})

    @override
    def form(self, state: State) -> Form:
        """The rows that stay under a mask, and the bypass."""
        latent, stay = state["latent"].detach(), self._gates(state).detach() > 0
        rows = masked(latent[stay].reshape(-1), stay[:, None].expand(latent.shape).contiguous())
        return Sum((rows, LowRank(state["up"].detach(), state["down"].detach()))) if self.bypass else rows

    @override
    def outlines(self, shapes: Shapes) -> dict[str, Form]:
        """As many entries over all weights."""
        counts, found = divided(self.keep, shapes, "global"), {}
        for unit, (rows, columns) in shapes.items():
            kept = masked(torch.zeros(counts[unit]), (torch.arange(rows * columns) < counts[unit]).reshape(rows, columns))
            low = LowRank(torch.zeros(rows, self.bypass), torch.zeros(self.bypass, columns))
            found[unit] = Sum((kept, low)) if self.bypass else kept
        return found


def _above(latent: torch.Tensor, threshold: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """By how much rows (rows,) exceed their layer's threshold, relative to the layer's mean; what norms are divided by, times themselves."""
    sizes = latent.norm(dim=1)
    mean = sizes.mean().clamp_min(1e-30)
    return sizes / mean - threshold, (sizes * mean).clamp_min(1e-30)


class _Gates(torch.autograd.Function):
    """1 where a row is above the threshold, with the gradient of a sigmoid around it."""

    @staticmethod
    def forward(ctx, latent: torch.Tensor, threshold: torch.Tensor, width: float) -> torch.Tensor:
        above, scale = _above(latent, threshold)
        soft = (above / width).sigmoid()
        ctx.latent, ctx.slope, ctx.scale = latent, soft * (1 - soft) / width, scale
        return (above >= above.max().clamp_max(0)).float()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        slope = gradient * ctx.slope
        return (slope / ctx.scale)[:, None] * ctx.latent, -slope.sum().reshape(1), None
