"""Stable random parameter sharing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.core.errors import SettingError
from modicum.core.method import Paper
from modicum.core.parametrization import Start, State, Step
from modicum.core.settings import param
from modicum.forms.pooled import ROUNDS, drawn
from modicum.restrict._family import Restriction, Shapes
from modicum.restrict._shared import common_deviation, deviation, place, pooled, weight

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class StableRps(Restriction):
    """All weights are entries of one array that is smaller than they are: which, and with which sign, a seed draws run by run.

    A number of the array serves many weights, each by its layer's own scale λ; its gradient is divided by the sum of their λ², so that an update
    moves weights as far as without sharing. Every number is used as often as every other, give or take one.

    *Shapes:* pool (1, numbers), trained, which all weights share; nothing of a weight's own but λ.

    *Needs and cost:* no statistics; ``keep`` of all weights' numbers, products as without sharing.

    *Reduces to:* dense training with ``keep=1``, where every weight has a number of its own.

    *Raises:* ``SettingError`` where fewer numbers than a run would be left.

    *Differences from the paper:* order and signs are drawn by the round instead of hashed; a weight that exists is not projected.

    Example:
        >>> str(StableRps(keep=0.05))
        'stable_rps keep=0.05'

    """

    draws: ClassVar[bool] = True
    paper: ClassVar[Paper | None] = Paper(
        title="In defense of parameter sharing for model-compression",
        arxiv="2310.11611",
        year=2023,
        authors="Aditya Desai and Anshumali Shrivastava",
    )

    keep: float = param(0.1, "numbers of the array, as a share of all weights", between=(1e-6, 1.0), dial=True)
    chunk: int = param(16, "weights that lie beside each other in the array", between=(1, 65536))

    @override
    def common(self, shapes: Shapes, chance: torch.Generator, seed: int) -> State | None:
        """The array, where each weight begins in the order of all, and how often each number is used."""
        total, wanted = sum(map(math.prod, shapes.values())), self.keep * sum(map(math.prod, shapes.values()))
        length = (math.ceil(total / self.chunk) if self.keep == 1 else int(wanted / self.chunk)) * self.chunk
        if not length or max(map(math.prod, shapes.values())) > ROUNDS * length:
            raise SettingError(
                f"keep: must leave a run of {self.chunk} numbers at least, and one for {ROUNDS} of a weight's, leaves {wanted:.3g} of {total}. "
                "Raise it, or lower chunk."
            )
        mean, at, used = common_deviation(shapes.values()), 0, torch.zeros(length)
        frozen: dict[str, torch.Tensor] = {}
        for unit, shape in sorted(shapes.items()):
            where, scale = place(at, 0, length, self.chunk, seed), torch.tensor([deviation(shape[1]) / mean])
            places, _ = drawn(math.prod(shape), at=at, first=0, length=length, chunk=self.chunk, seed=seed)
            used.index_add_(0, places, (scale**2).expand(len(places)))
            frozen |= {f"place of {unit}": where, f"scale of {unit}": scale}
            at += math.prod(shape)
        bound = mean * math.sqrt(3)
        pool = torch.empty(1, length).uniform_(-bound, bound, generator=chance)
        return State({"pool": pool}, {**frozen, "used": used.clamp_min(1e-12)[None]})

    @override
    def begin(self, start: Start) -> State:
        """Where the weight lies in the array."""
        assert start.common is not None
        where, scale = (start.common[f"{what} of {start.unit}"] for what in ("place", "scale"))
        return State({}, {"where": where, "scale": scale, "shape": torch.tensor(start.shape)}, start.common)

    def _made(self, state: State) -> tuple[torch.Tensor, tuple[int, int], torch.Tensor]:
        rows, columns = state["shape"].tolist()
        return state["where"], (rows, columns), state["scale"]

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """Entries of the array; its gradient is divided by what shares it."""
        return weight(_Divided.apply(state["pool"], state["used"]), *self._made(state))

    @override
    def form(self, state: State) -> Form:
        """Entries of what is shared, and a scale."""
        return pooled(state, f"{self}: pool", *self._made(state))


class _Divided(torch.autograd.Function):
    """Itself, with its gradient divided by what uses it."""

    @staticmethod
    def forward(ctx, pool: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
        ctx.used = used
        return pool.clone()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return gradient / ctx.used, None
