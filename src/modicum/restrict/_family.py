"""The restrict family: a weight that is trained within what can be stored small."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.core.errors import SettingError
from modicum.core.parametrization import Parametrization, Revision, Start, State, Step
from modicum.core.settings import param
from modicum.forms import Dense, Masked
from modicum.numerics.ordered import nth_largest

if TYPE_CHECKING:
    from modicum.forms import Form

Shapes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Restriction(Parametrization):
    """Takes the weight's place; ``begin`` starts from the weight where there is one, else from random numbers."""

    relative: ClassVar[bool] = False

    @property
    def shifts(self) -> bool:
        """Whether entries may end in other weights than ``outlines`` says, as many over all."""
        return getattr(self, "layers", "") == "global"

    def density(self, step: Step) -> float:
        """Share of a weight's entries that take part in the products of an update."""
        return 1.0

    def products(self, shape: tuple[int, int], step: Step) -> float:
        """Multiplications of an update per token with a weight (rows, columns), as a share of a dense one's; making a weight is none of them."""
        return self.density(step)

    def outlines(self, shapes: Shapes) -> dict[str, Form]:
        """What weights of these shapes end as, in kind and in bytes; their values mean nothing. Raises ``SettingError``."""
        chance, common = torch.Generator().manual_seed(0), self.common(shapes, torch.Generator().manual_seed(0), 0)
        begun = {unit: self.begin(Start(unit, shape, None, chance, 0, None, common)) for unit, shape in shapes.items()}
        with torch.no_grad():
            return {unit: self.form(state) for unit, state in begun.items()}


@dataclass(frozen=True, kw_only=True)
class Sparsity(Restriction):
    """A sparse weight: ``values`` (entries,) at ``places`` (entries,) of the matrix, row by row; the rest is zero."""

    keep: float = param(0.1, "share of all weights that is kept", between=(1e-6, 1.0), dial=True)
    layers: str = param("erk", "how the share is divided over layers", choices=("uniform", "erk"))

    @override
    def common(self, shapes: Shapes, chance: torch.Generator, seed: int) -> State | None:
        """How many entries each weight has."""
        counts = divided(self.keep, shapes, self.layers)
        return State({}, {f"entries of {unit}": torch.tensor(count) for unit, count in counts.items()})

    @override
    def density(self, step: Step) -> float:
        """What is kept."""
        return self.keep

    def entries(self, state: State, unit: str) -> int:
        """How many entries a unit has in the end."""
        return int(state[f"entries of {unit}"])

    @override
    def begin(self, start: Start) -> State:
        """Random places, with the entries that the weight has there."""
        assert start.common is not None
        count, dense = self.entries(start.common, start.unit), beginning(start)
        places = torch.randperm(math.prod(start.shape), generator=start.chance)[:count].sort().values
        return sparse(dense, places, start.common)

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The values at their places."""
        rows, columns = state["shape"].tolist()
        flat = state["values"].new_zeros(rows * columns).index_copy(0, state["places"], state["values"])
        return flat.reshape(rows, columns)

    @override
    def form(self, state: State) -> Form:
        """A mask and what it keeps."""
        rows, columns = state["shape"].tolist()
        mask = torch.zeros(rows * columns, dtype=torch.bool).index_fill(0, state["places"].cpu(), True)
        return masked(state["values"], mask.reshape(rows, columns))

    @override
    def outlines(self, shapes: Shapes) -> dict[str, Form]:
        """As many entries as are there in the end."""
        common = self.common(shapes, torch.Generator(), 0)
        assert common is not None
        found: dict[str, Form] = {}
        for unit, (rows, columns) in shapes.items():
            count = self.entries(common, unit)
            found[unit] = masked(torch.zeros(count), (torch.arange(rows * columns) < count).reshape(rows, columns))
        return found


@dataclass(frozen=True, kw_only=True)
class Scored(Sparsity):
    """A sparse weight whose places are chosen once, before training, by a score of every entry; a file says ``scores``."""

    layers: str = param("global", "how the share is divided over layers", choices=("global", "uniform", "erk"))

    @property
    def looks(self) -> int:
        """One pass."""
        return 1

    @override
    def begin(self, start: Start) -> State:
        """All places, until they are chosen."""
        return sparse(beginning(start), torch.arange(math.prod(start.shape)), start.common)

    @override
    def watches(self, step: Step) -> bool:
        """In the passes before training."""
        return 1 - self.looks <= step.number <= 0

    def scores(self, state: State, gradient: torch.Tensor) -> torch.Tensor:
        """Of each entry (rows, columns) of a weight, of which the largest stay; ``gradient`` is of the last pass."""
        raise NotImplementedError

    def chosen(self, state: State, places: torch.Tensor) -> State:
        """The state with these places alone."""
        return kept(state, places)

    @override
    def revise(self, states: Mapping[str, State], gradients: Mapping[str, torch.Tensor], budget: int, step: Step) -> Revision | None:
        """Before the first update all but the highest scores go. Raises ``SettingError`` where nobody looked."""
        if step.number > 0 and (whole := [unit for unit, state in states.items() if self._whole(state, unit)]):
            raise SettingError(
                f"{self.key().split('/')[1]}: must see gradients before it is trained, has not at {whole[0]}. Call scored first."
            )
        if step.number != 0 or not gradients:
            return None
        scores = {unit: self.scores(states[unit], gradients[unit]).reshape(-1) for unit in gradients}
        places = highest(scores, {unit: self.entries(states[unit], unit) for unit in scores}, together=self.layers == "global")
        return Revision({unit: self.chosen(states[unit], places[unit]) for unit in scores})

    def _whole(self, state: State, unit: str) -> bool:
        """Whether nothing was chosen of a unit yet, where something must be."""
        return len(state["values"]) == math.prod(state["shape"].tolist()) and self.keep < 1 and "values" in state.trained


@dataclass(frozen=True, kw_only=True)
class Pattern(Restriction):
    """Of every ``m`` entries of a row ``n`` are stored, all where n is no less; ``latent`` (rows, columns) is trained whole."""

    n: int = param(2, "entries that stay of every m", between=(1, 256), dial=True)
    m: int = param(4, "entries that n are kept of", between=(1, 256), dial=True)

    @override
    def begin(self, start: Start) -> State:
        """The weight."""
        return State({"latent": beginning(start)}, base=start.base)

    def mask(self, latent: torch.Tensor) -> torch.Tensor:
        """The largest n of every m (rows, columns), the first of equal ones; in a row's last entries in the same proportion."""
        return self.used(latent) > 0

    def used(self, latent: torch.Tensor) -> torch.Tensor:
        """The same as numbers (rows, columns): 1 where an entry is used, else 0."""
        if self.n >= self.m:
            return torch.ones_like(latent)
        rows, columns = latent.shape
        size = latent.abs()
        if columns % self.m:
            size = torch.nn.functional.pad(size, (0, -columns % self.m), value=-1.0)
        size = size.view(-1, self.m)
        border = _border(size, self.n).repeat_interleave(self.m).view(size.shape)
        chosen = torch.ge(size, border, out=torch.empty_like(size))
        if _all(chosen.view(rows, -1)) != self.n * len(size):  # equal ones at the border
            chosen = _first(size, self.n).to(size.dtype)
        return chosen.view(rows, -1)[:, :columns]

    @override
    def density(self, step: Step) -> float:
        """N of m."""
        return min(1.0, self.n / self.m)

    @override
    def form(self, state: State) -> Form:
        """A mask and what it keeps."""
        latent, mask = state["latent"].detach(), self.mask(state["latent"].detach())
        return masked(latent[mask], mask)

    @override
    def outlines(self, shapes: Shapes) -> dict[str, Form]:
        """As many of each row."""
        return {unit: self.form(State({"latent": torch.zeros(shape)})) for unit, shape in shapes.items()}


# Entries of a group up to which the least of the largest is found by one pass over the group's places.
_FEW = 4


def _border(size: torch.Tensor, n: int) -> torch.Tensor:
    """The n-th largest (groups,) of each group (groups, m)."""
    turned = n > size.shape[1] - n + 1  # nearer to the least
    count, greater, less = (size.shape[1] - n + 1, torch.minimum, torch.maximum) if turned else (n, torch.maximum, torch.minimum)
    if count > _FEW:
        return nth_largest(size, n)
    places = torch.stack(size.unbind(1))  # all groups side by side
    if count == 1:
        return places.amin(0) if turned else places.amax(0)
    if count == 2 and size.shape[1].bit_count() == 1:
        (one, two), second = places.chunk(2), None
        while True:  # the first two of twice as many places each time
            passed = less(one, two)
            first, second = greater(one, two), passed if second is None else greater(passed, greater(*second.chunk(2)))
            if len(first) == 1:
                return second[0]
            one, two = first.chunk(2)
    found = list[torch.Tensor]()
    for moving in places:
        for held in found:
            passed = less(held, moving)
            greater(held, moving, out=held)
            moving = passed
        if len(found) < count:
            found.append(moving.clone())
    return found[-1]


def _first(size: torch.Tensor, n: int) -> torch.Tensor:
    """Which entries of groups (groups, m) are the n largest, the first of equal ones, by how many of its group are before each."""
    places = size.T.contiguous()
    above = torch.zeros_like(places, dtype=torch.uint8 if len(places) < 256 else torch.int16)
    for place in range(len(places)):
        above += places[place] > places
        above[place + 1 :] += places[place] == places[place + 1 :]
    return (above < n).T.contiguous()


class _Through(torch.autograd.Function):
    """The second in the first's place, with the gradient of the first."""

    @staticmethod
    def forward(ctx, latent: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        return made.view_as(made)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return gradient, None


def through(latent: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """``made``, whose gradient goes straight to ``latent``."""
    return _Through.apply(latent, made)


def sparse(dense: torch.Tensor, places: torch.Tensor, common: State | None) -> State:
    """The state that has the entries of ``dense`` (rows, columns) at ``places`` of it, row by row."""
    return State({"values": dense.reshape(-1)[places]}, {"places": places, "shape": torch.tensor(dense.shape)}, common)


def masked(values: torch.Tensor, mask: torch.Tensor) -> Form:
    """What a mask (rows, columns) keeps, in order; a mask that keeps all is not stored."""
    return Dense(values.reshape(mask.shape)) if bool(mask.all()) else Masked(values, mask)


def kept(state: State, places: torch.Tensor) -> State:
    """A sparse state with some of its places, by their places in the matrix."""
    return state.having({"values": state["values"].detach()[inside(state, places)]}, {"places": places})


def inside(state: State, places: torch.Tensor) -> torch.Tensor:
    """Which entries of a sparse state have these places in the matrix."""
    return torch.searchsorted(state["places"], places)


def moved(state: State, wanted: torch.Tensor, count: int) -> tuple[State, dict[str, torch.Tensor]]:
    """``count`` of the smallest entries give their places to the free ones that are ``wanted`` most, none below 0; and which moments stay."""
    values, places = state["values"].detach(), state["places"]
    count = min(count, wanted.numel() - len(values))
    stays = torch.ones_like(values, dtype=torch.bool).index_fill(0, values.abs().argsort(stable=True)[:count], False)
    grown = wanted.reshape(-1).index_fill(0, places, -1.0).argsort(descending=True, stable=True)[:count]
    order = torch.cat([places[stays], grown]).argsort()
    fresh = {"values": torch.cat([values[stays], values.new_zeros(count)])[order]}
    old = torch.cat([stays.nonzero()[:, 0], places.new_full((count,), -1)])[order]
    return state.having(fresh, {"places": torch.cat([places[stays], grown])[order]}), {"values": old}


def top(scores: torch.Tensor, count: int) -> torch.Tensor:
    """1 where an entry is among the ``count`` highest of a weight, else 0, of its shape; of equal ones the first."""
    if count >= scores.numel():
        return torch.ones_like(scores)
    border = nth_largest(scores.reshape(-1), count)
    chosen = torch.ge(scores, border, out=torch.empty_like(scores))
    if _all(chosen) == count:
        return chosen
    above, equal = (scores > border).reshape(-1), (scores == border).reshape(-1).nonzero()[:, 0]
    return above.index_fill(0, equal[: count - int(above.count_nonzero())], True).reshape(scores.shape).to(scores.dtype)


def _all(chosen: torch.Tensor) -> int:
    """How many entries (rows, columns) are 1; exact as long as a row has less than 2²⁴."""
    return int(chosen.sum(1).sum(dtype=torch.float64))


def highest(scores: Mapping[str, torch.Tensor], counts: Mapping[str, int], *, together: bool) -> dict[str, torch.Tensor]:
    """Places of the highest scores, ascending: as many as ``counts`` says of each unit, or ``together`` as many as it says of all."""
    if not together:
        return {unit: score.argsort(descending=True, stable=True)[: counts[unit]].sort().values for unit, score in scores.items()}
    order = torch.cat(list(scores.values())).argsort(descending=True, stable=True)[: sum(counts.values())].sort().values
    found, begin = {}, 0
    for unit, score in scores.items():
        found[unit] = order[(order >= begin) & (order < begin + len(score))] - begin
        begin += len(score)
    return found


def divided(keep: float, shapes: Shapes, layers: str) -> dict[str, int]:
    """Entries of each weight, ``keep`` of all to the entry: the same share of each, or in proportion to (rows + columns) / (rows · columns).

    Raises ``SettingError`` where that leaves fewer than one to a row.
    """
    sizes = {unit: math.prod(shape) for unit, shape in shapes.items()}
    wanted = {unit: keep * size for unit, size in sizes.items()} if layers != "erk" else _erdos_renyi(keep, shapes)
    counts = {unit: math.floor(each) for unit, each in wanted.items()}
    spare = round(keep * sum(sizes.values())) - sum(counts.values())
    for unit in sorted(wanted, key=lambda unit: (counts[unit] - wanted[unit], unit))[:spare]:
        counts[unit] += 1
    few = [unit for unit, (rows, _) in shapes.items() if counts[unit] < rows]
    if few and (layers != "global" or sum(counts.values()) < sum(rows for rows, _ in shapes.values())):
        rows = shapes[few[0]][0]
        raise SettingError(
            f"keep: must leave at least one weight per row, leaves {counts[few[0]]} in the {rows} rows of {few[0]}. Raise it."
        )
    return counts


def _erdos_renyi(keep: float, shapes: Shapes) -> dict[str, float]:
    """Those whose density would be above one are whole."""
    wanted, whole = keep * sum(map(math.prod, shapes.values())), set[str]()
    while True:
        rest = {unit: shape for unit, shape in shapes.items() if unit not in whole}
        left = wanted - sum(math.prod(shapes[unit]) for unit in whole)
        factor = max(0.0, left) / max(1, sum(sum(shape) for shape in rest.values()))
        beyond = {unit for unit, shape in rest.items() if factor * sum(shape) >= math.prod(shape)}
        if not beyond:
            return {unit: math.prod(shape) if unit in whole else factor * sum(shape) for unit, shape in shapes.items()}
        whole |= beyond


def scaled(scale: torch.Tensor, unit: str) -> torch.Tensor:
    """The scale of a grid that weights begin on. Raises ``SettingError`` where it overflows."""
    if not bool(scale.isfinite().all()):
        raise SettingError(f"{unit}: a grid must have a scale that float32 holds, the weights' overflows. Scale the weights down.")
    return scale


def beginning(start: Start) -> torch.Tensor:
    """The weight, or uniform numbers in ±1/√columns as linear layers begin with."""
    if start.weight is not None:
        return start.weight.float().clone()
    bound = 1 / math.sqrt(max(1, start.shape[1]))
    return torch.empty(start.shape).uniform_(-bound, bound, generator=start.chance)
