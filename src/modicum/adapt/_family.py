"""The adapt family: what is learnt stands beside a weight that stays as it is."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from typing_extensions import override

from modicum.core.errors import SettingError
from modicum.core.method import Change
from modicum.core.parametrization import Parametrization, Start, State, Step
from modicum.core.settings import param
from modicum.core.unit import Site, Stats
from modicum.forms import Dense, LowRank, Sparse, Sum
from modicum.numerics.beside import beside

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Adapter(Parametrization):
    """Changes a base; ``begin`` gives it back to the bit."""


@dataclass(frozen=True, kw_only=True)
class LowRankAdapter(Adapter):
    """``base + scale · left @ right``; files say where both factors begin, and ``scale`` what they are multiplied by."""

    def scale(self, rank: int) -> float:
        """What the product of the factors is multiplied by."""
        return 1.0

    @override
    def closed(self, stored: Form, state: State) -> Form:
        """The product beside it, as ``eora`` lays it."""
        added = LowRank(*(factor.detach().to(stored.dtype) for factor in (self.left(state), state["right"])))
        return Sum((*(stored.parts if isinstance(stored, Sum) else (stored,)), added))

    @override
    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, Form]) -> Change:
        """Add what training begins with, by which nothing changes but the bytes. Raises ``SettingError`` where nothing was compressed before."""
        forms = {}
        for unit in site.units:
            stored, seed = current[unit.name], zlib.crc32(unit.name.encode())
            if isinstance(stored, Dense):
                raise SettingError(
                    f"{self.key()}: must follow a step that changed the weight, {unit.name} is unchanged. Use modicum adapt."
                )
            start = Start(
                unit=unit.name, shape=stored.shape, weight=None, chance=torch.Generator().manual_seed(seed), seed=seed, stored=stored
            )
            forms[unit.name] = self.closed(stored, self.begin(start))
        return Change(forms=forms)

    def left(self, state: State) -> torch.Tensor:
        """The left factor (rows, rank) under its scale."""
        return state["left"] * self.scale(state["left"].shape[1])

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        assert base is not None
        return base + self.left(state) @ state["right"]

    @override
    def form(self, state: State) -> Form:
        assert state.base is not None
        return Sum((state.base, LowRank(self.left(state), state["right"])))

    @override
    def product(self, base: Form | None, state: State, x: torch.Tensor, step: Step) -> torch.Tensor | None:
        assert base is not None
        left, right = self.left(state).to(x.dtype), state["right"].to(x.dtype)
        if isinstance(base, Dense) and base.dtype == x.dtype and not base.weight.requires_grad:
            return beside(x, base.weight, left, right)
        return base.product(x) + beside(x, None, left, right)


@dataclass(frozen=True, kw_only=True)
class StrongAdapter(LowRankAdapter):
    """A product of factors of a rank, under a strength of its own: LoRA, and what begins or is scaled otherwise."""

    rank: int = param(8, "inner size of the two factors", between=(1, 65536), dial=True)
    alpha: float = param(16.0, "strength: the product is multiplied by alpha / rank", between=(0.0, 1e6))

    @override
    def scale(self, rank: int) -> float:
        """Alpha over the rank that was asked for."""
        return self.alpha / self.rank


@dataclass(frozen=True, kw_only=True)
class PrincipalAdapter(Adapter):
    """``base + (left @ right - left before @ right before)``: factors that begin as part of the weight, of which only what has moved is added.

    The difference is exactly zero at the beginning, so the base comes back to the bit; the residual in its place would have to be rounded.
    """

    def factors(self, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        """Left (rows, rank) and right (rank, columns) as they stand."""
        return state["left"], state["right"]

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        assert base is not None
        left, right = self.factors(state)
        return base + (left @ right - state["left before"] @ state["right before"])

    @override
    def form(self, state: State) -> Form:
        assert state.base is not None
        moved = Sum((LowRank(*self.factors(state)), LowRank(-state["left before"], state["right before"])))
        return Sum((state.base, moved))

    @override
    def product(self, base: Form | None, state: State, x: torch.Tensor, step: Step) -> torch.Tensor | None:
        assert base is not None
        through = lambda left, right: beside(x, None, left.to(x.dtype), right.to(x.dtype))
        moved = through(*self.factors(state)) - through(state["left before"], state["right before"])
        return base.product(x) + moved  # one product of both pairs would leave at first what rounding leaves of their sum


@dataclass(frozen=True, kw_only=True)
class AddedAdapter(Adapter):
    """``base + change``: a trained number for every entry of what a plan names."""

    @override
    def begin(self, start: Start) -> State:
        """Zeros."""
        return State({"change": torch.zeros(start.shape)}, base=start.base)

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The base and the change."""
        assert base is not None
        return base + state["change"]

    @override
    def form(self, state: State) -> Form:
        """All entries of the change."""
        assert state.base is not None
        return Sum((state.base, Dense(state["change"])))


@dataclass(frozen=True, kw_only=True)
class SparseAdapter(Adapter):
    """``base + S``: trained entries at places of the weight, row by row."""

    def entries(self, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        """Values (count,) and their places (count,), ascending."""
        return state["entries"], state["places"]

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        assert base is not None
        return base + scatter(*self.entries(state), (base.shape[0], base.shape[1]))

    @override
    def form(self, state: State) -> Form:
        assert state.base is not None
        values, places = self.entries(state)
        return Sum(
            (state.base, Sparse(values, state.base.shape, places.to(torch.int32) if math.prod(state.base.shape) < 2**31 else places))
        )


def limited(rank: int, start: Start) -> int:
    """The rank, or the smaller side of the weight where that has fewer."""
    return min(rank, *start.shape)


def counted(keep: float, start: Start) -> int:
    """How many entries a share of the weight is, at least one."""
    return max(1, round(keep * math.prod(start.shape)))


def scatter(entries: torch.Tensor, places: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Entries at their places of zeros of ``shape``; differentiable."""
    return entries.new_zeros(math.prod(shape)).index_copy(0, places, entries).reshape(shape)


def weight_of(start: Start) -> torch.Tensor:
    """The weight that training begins from, for methods that are made of it. Raises ``SettingError`` where there is none."""
    if start.weight is None:
        raise SettingError(f"{start.unit}: must have a weight to begin from, has none. Train a restriction such as 'sltrain' from nothing.")
    return start.weight.float().contiguous()


def uniform(start: Start, rows: int, columns: int) -> torch.Tensor:
    """Numbers in ±1/√columns, as linear layers begin."""
    bound = 1 / math.sqrt(max(1, columns))
    return torch.empty(rows, columns).uniform_(-bound, bound, generator=start.chance)
