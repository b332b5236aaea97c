"""Shapeshifter networks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Revision, Start, State, Step
from modicum.core.settings import param
from modicum.forms import Sum
from modicum.forms.pooled import ROUNDS
from modicum.restrict._family import Restriction, Shapes
from modicum.restrict._shared import common_deviation, deviation, place, pooled, weight

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Shapeshifter(Restriction):
    """Each weight is a sum of templates from a bank of any size, below or above that of the model, in proportions of its own.

    Templates are runs of the bank, gone through again where it is too short; above the model's size each weight has runs of its own. Weights share
    one bank at first; after the share ``grouping`` of training those of similar proportions become ``groups``, each with its part of the bank.

    *Shapes:* pool (1, numbers), trained, which all weights share; mix (templates,) of each weight, trained.

    *Needs and cost:* no statistics; ``keep`` times the model's numbers, ``templates`` additions per weight.

    *Reduces to:* one weight after the other where ``keep=1 templates=1 groups=1``.

    *Raises:* nothing of its own.

    *Differences from the paper:* groups are found in one training instead of one of their own; templates that are too short are repeated only.

    Example:
        >>> str(Shapeshifter(keep=0.5))
        'shapeshifter keep=0.5'

    """

    draws: ClassVar[bool] = True
    paper: ClassVar[Paper | None] = Paper(
        title="Neural Parameter Allocation Search",
        arxiv="2006.10598",
        year=2020,
        authors="Bryan A. Plummer and Nikoli Dryden and Julius Frost and Torsten Hoefler and Kate Saenko",
    )

    keep: float = param(0.25, "numbers of the bank, as a share of all weights", between=(1e-6, 16.0), dial=True)
    templates: int = param(4, "runs of the bank that a weight is a sum of", between=(1, 64))
    groups: int = param(2, "groups of weights with a part of the bank each", between=(1, 4096))
    grouping: float = param(0.1, "share of training after which weights are grouped", between=(0.0, 1.0))

    @override
    def common(self, shapes: Shapes, chance: torch.Generator, seed: int) -> State | None:
        """The bank, and where each weight's templates begin while all share it."""
        sizes = list(map(math.prod, shapes.values()))
        numbers = max(self._least(sizes), round(self.keep * sum(sizes)))
        pool = common_deviation(shapes.values()) * torch.randn(1, numbers, generator=chance)
        where = self._runs({unit: math.prod(shape) for unit, shape in sorted(shapes.items())}, 0, numbers)
        scales = {unit: deviation(shape[1]) / common_deviation(shapes.values()) for unit, shape in sorted(shapes.items())}
        frozen = {f"runs of {unit}": runs for unit, runs in where.items()}
        return State({"pool": pool}, frozen | {f"scale of {unit}": torch.tensor([scale]) for unit, scale in scales.items()})

    def _least(self, sizes: Iterable[int]) -> int:
        """Numbers that a bank has at least: one for each template, and for so many of a weight's as a file may say."""
        return max(self.templates, math.ceil(max(sizes) / ROUNDS))

    def _runs(self, sizes: Mapping[str, int], first: int, length: int) -> dict[str, torch.Tensor]:
        """Places of templates (templates, 5) by weight in a part of the bank: the same for all, or where there is room runs of their own."""
        apart = length >= self.templates * sum(sizes.values())
        found, begin = {}, 0
        for unit, size in sizes.items():
            at = [begin + number * size if apart else number * (length // self.templates) for number in range(self.templates)]
            found[unit] = torch.stack([place(each, first, length) for each in at])
            begin += self.templates * size
        return found

    @override
    def begin(self, start: Start) -> State:
        """Random proportions, whose squares sum to one."""
        assert start.common is not None
        mix = torch.randn(self.templates, generator=start.chance)
        runs, scale = (start.common[f"{what} of {start.unit}"] for what in ("runs", "scale"))
        return State(
            {"mix": mix / mix.norm().clamp_min(1e-6)}, {"runs": runs, "scale": scale, "shape": torch.tensor(start.shape)}, start.common
        )

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The templates, added in their order."""
        (rows, columns), scales = state["shape"].tolist(), state["mix"] * state["scale"]
        found = [weight(state["pool"], runs, (rows, columns), scale) for runs, scale in zip(state["runs"], scales)]
        total = found[0]
        for each in found[1:]:
            total = total + each
        return total

    @override
    def form(self, state: State) -> Form:
        """Runs of what is shared, each with its scale."""
        (rows, columns), scales = state["shape"].tolist(), state["mix"] * state["scale"]
        found = [pooled(state, f"{self}: pool", runs, (rows, columns), scale) for runs, scale in zip(state["runs"], scales)]
        return Sum(tuple(found)) if len(found) > 1 else found[0]

    @override
    def revise(self, states: Mapping[str, State], gradients: Mapping[str, torch.Tensor], budget: int, step: Step) -> Revision | None:
        """Once, groups of weights whose proportions are alike."""
        if step.number != max(1, round(self.grouping * step.total)) or self.groups == 1:
            return None
        sizes = {unit: math.prod(state["shape"].tolist()) for unit, state in sorted(states.items())}
        group = _alike(torch.stack([states[unit]["mix"].detach() for unit in sizes]), min(self.groups, len(sizes))).tolist()
        numbers, first = next(iter(states.values()))["pool"].numel(), 0
        found: dict[str, torch.Tensor] = {}
        parts = [{unit: size for (unit, size), own in zip(sizes.items(), group) if own == number} for number in sorted(set(group))]
        for number, part in enumerate(parts):
            share = sum(part.values()) / sum(sizes.values())
            length = numbers - first if number + 1 == len(parts) else max(self._least(sizes.values()), int(share * numbers))
            if first + length > numbers or length < self._least(part.values()):
                return None  # the bank is too small to be divided
            found |= self._runs(part, first, length)
            first += length
        return Revision({unit: state.having(frozen={"runs": found[unit]}) for unit, state in states.items()})


def _alike(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Which of ``count`` groups each row (rows, numbers) is in, by k-means whose means begin far from each other."""
    means = rows[:1]
    while len(means) < count:
        means = torch.cat([means, rows[torch.cdist(rows, means).amin(1).argmax()][None]])
    for _ in range(20):
        group = torch.cdist(rows, means).argmin(1)
        means = torch.stack([rows[group == each].mean(0) if bool((group == each).any()) else means[each] for each in range(count)])
    return torch.cdist(rows, means).argmin(1)
