"""Scales and minima of llama.cpp's types that leave the least squared error, each weight counted by how much its input matters.

Weights that share a scale lie below each other, (columns, groups), so that a pass over the weights is one operation on all groups. A try rounds all
weights under one scale per group; a few sums then tell the best scale and minimum for these codes, and what error they save, in closed form.
Where scales are whole numbers of a block's step, every whole number near the best is tried: what is compared is what is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from modicum.forms.ggml_blocks import Layout
from modicum.numerics.ggml_lattice import together

# The least number of float16 above zero, and how many steps are tried for a block. Of more levels the two ends are as good as alike.
_TINY, _STEPS, _FEW = 2.0**-24, 12, 32


class Groups:
    """Weights and their counts, float32 (columns, groups), ``blocks`` of which in turn share a step; and room for what is tried on them."""

    def __init__(self, layout: Layout, count: int, blocks: int):
        self.values, self.counts, self.placed, self.weighed = (torch.empty(layout.columns, count) for _ in range(4))
        self.layout, self.blocks = layout, blocks

    def by_block(self, each: torch.Tensor) -> torch.Tensor:
        """One number a group as (blocks, groups of each)."""
        return each.view(self.blocks, -1)

    def levels(self, inverse: torch.Tensor, lifted: torch.Tensor | None = None) -> torch.Tensor:
        """Levels nearest to the values times ``inverse``, and ``lifted`` where it is given: in room that the next call takes again."""
        if lifted is None:
            torch.mul(self.values, inverse, out=self.placed)
        else:
            torch.addcmul(lifted, self.values, inverse, out=self.placed)
        return nearest(self.layout, self.placed, self.counts)

    def sums(self, inverse: torch.Tensor, lifted: torch.Tensor | None = None) -> list[torch.Tensor]:
        """For these levels the sums over each group of counts times ``level · value``, ``level²`` and, where values are lifted, ``level``."""
        levels = self.levels(inverse, lifted)
        torch.mul(levels, self.counts, out=self.weighed)
        plain = [] if lifted is None else [self.weighed.sum(0)]
        square = torch.mul(self.weighed, levels, out=self.placed).sum(0)
        return [torch.mul(self.weighed, self.values, out=self.placed).sum(0), square, *plain]


def nearest(layout: Layout, placed: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Levels nearest to ``placed`` (columns, groups), which may be overwritten; ``counts`` tell where columns are bound to each other."""
    if layout.points is not None:
        return together(layout.points, placed, counts)
    if layout.table:
        return _by_halves(layout)[placed.mul_(2).floor_().nan_to_num_().clamp_(-256, 255).add_(256).int()]
    return placed.round_().clamp_(-layout.zero, layout.codes - 1 - layout.zero)


def _by_halves(layout: Layout) -> torch.Tensor:
    """The nearest level between a half and the next: levels are whole numbers, so the middle between two is a multiple of a half."""
    levels = torch.tensor(layout.table, dtype=torch.float32)
    return levels[torch.bucketize(torch.arange(-256, 256) / 2 + 0.25, (levels[1:] + levels[:-1]) / 2)]


def inverted(scale: torch.Tensor) -> torch.Tensor:
    """Reciprocals, zero of zero and of what has none."""
    return torch.where(scale.abs() < torch.finfo(torch.float32).tiny, 0.0, 1 / scale)


def divided(values: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Quotients, zero where the divisor is."""
    return torch.where(by == 0, 0.0, values / by)


def half(values: torch.Tensor, unit: float = 1.0) -> torch.Tensor:
    """Float32 that is ``unit`` times what float16 holds; what is not zero stays so."""
    rounded = (values / unit).half().float()
    return torch.where((rounded == 0) & (values != 0), torch.copysign(torch.tensor(_TINY), values), rounded) * unit


def _picked(tried: Sequence[Sequence[torch.Tensor]], gain: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Of several tries, each a sequence of one number a group, the one that saves most error, by group: its saving, and its numbers."""
    stacks = [torch.stack(tuple(each)) for each in zip(*tried)]
    if gain is None:
        gain, *stacks = stacks
    most, which = gain.max(0)
    return [most, *(each.gather(0, which[None])[0] for each in stacks)]


def stepped(scale: torch.Tensor, curvature: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The step (blocks,) whose whole numbers come nearest to ``scale`` (blocks, groups), each counted by ``curvature``."""
    far = scale.gather(1, scale.abs().argmax(1, keepdim=True))
    end = -layout.bias if layout.bias > 0 else layout.scales - 1 - layout.bias
    step = half(far / torch.linspace(end, 0.8 * end, _STEPS), layout.unit).T[..., None]
    error = (whole_numbers(scale, step, layout) * step).sub_(scale).square_().mul_(curvature).sum(2)
    return step[..., 0].gather(0, error.argmin(0)[None])[0]


def whole_numbers(scale: torch.Tensor, step: torch.Tensor, layout: Layout) -> torch.Tensor:
    """How many steps come nearest to scales, or minima."""
    return whole(divided(scale, step), layout)


def whole(numbers: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The nearest numbers of steps that a type has, in place: whole, or in the middle between two."""
    between = layout.bias % 1
    return numbers.add_(between).round_().sub_(between).clamp_(-layout.bias, layout.scales - 1 - layout.bias)


# Types without minima


def free(groups: Groups, shares: Sequence[float], rounds: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best scale of each group, and what a change of it costs: of several under which the largest weight lies at, or beyond, an end."""
    low, high = groups.values.amin(0), groups.values.amax(0)
    layout = groups.layout
    inverse = inverted(torch.where(high > -low, high, -low if layout.lattice else low))
    ends = (
        (max(layout.table),)
        if layout.lattice
        else (min(layout.table), max(layout.table))
        if layout.table
        else (-layout.zero, layout.codes - 1 - layout.zero)[: 2 if layout.codes <= _FEW else 1]
    )
    saves = lambda pull, square: [divided(pull.square(), square), pull, square]
    gain, pull, square = _picked([saves(*groups.sums(inverse * (end / share))) for share in shares for end in ends])
    for _ in range(rounds):
        gain, pull, square = _picked([(gain, pull, square), saves(*groups.sums(divided(square, pull)))])
    return divided(pull, square), square


class Steps(NamedTuple):
    """Steps float32 (blocks,) that float16 holds, and whole numbers of them (blocks, groups): of scales, and of minima where there are some."""

    step: torch.Tensor
    whole: torch.Tensor
    least: torch.Tensor | None = None
    below: torch.Tensor | None = None


def settled(groups: Groups, scale: torch.Tensor, curvature: torch.Tensor, rounds: int) -> Steps:
    """Steps and whole numbers in place of free scales: neighbours of each are tried in ``rounds``, and steps follow what they chose."""
    layout, by_block = groups.layout, groups.by_block
    step = stepped(by_block(scale), by_block(curvature), layout)
    whole = whole_numbers(by_block(scale), step[:, None], layout)
    best = [torch.full_like(step, -torch.inf), step, whole]
    for _ in range(rounds):
        tried = []
        for off in (0, -1, 1):
            own = (whole + off).clamp_(-layout.bias, layout.scales - 1 - layout.bias)
            size = (step[:, None] * own).flatten()
            pull, square = groups.sums(inverted(size))
            tried.append((2 * size * pull - size.square() * square, own.flatten(), pull, square))
        gain, whole, pull, square = map(by_block, _picked(tried))
        best = _better(best, [gain.sum(1), step, whole])
        new = half(divided((whole * pull).sum(1), (whole.square() * square).sum(1)), layout.unit)
        step = torch.where(new == 0, step, new)
    return Steps(*best[1:])


def _better(best: list[torch.Tensor], new: list[torch.Tensor]) -> list[torch.Tensor]:
    """Of two candidates for each block, the one that saves more error; savings stand first."""
    better = new[0] > best[0]
    return [torch.where(better if one.ndim == 1 else better[:, None], one, own) for own, one in zip(best, new)]


# Types with minima


class Sums(NamedTuple):
    """Sums over each group of counts times ``level · value``, ``level²``, ``level``, ``1`` and ``value``."""

    pull: torch.Tensor
    square: torch.Tensor
    plain: torch.Tensor
    one: torch.Tensor
    total: torch.Tensor

    def saved(self, scale: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
        """What ``scale · level - least`` saves of the error that zeros leave."""
        cross = scale * self.pull - least * self.total + scale * least * self.plain
        return 2 * cross - scale.square() * self.square - least.square() * self.one

    def best(self, *, below: bool) -> list[torch.Tensor]:
        """What the best scale and minimum save, and these; a minimum ``below`` zero alone, or none."""
        scale = divided(self.one * self.pull - self.total * self.plain, self.one * self.square - self.plain.square())
        least = divided(scale * self.plain - self.total, self.one)
        if below:
            alone = (least < 0) | (scale <= 0)
            scale, least = torch.where(alone, divided(self.pull, self.square), scale), torch.where(alone, 0.0, least)
        return [self.saved(scale, least), scale, least]


def lowered(groups: Groups, shares: Sequence[tuple[float, float]], rounds: int) -> tuple[torch.Tensor, torch.Tensor, Sums]:
    """The best scale of each group, the minimum that is subtracted, and the sums for its codes: of several shares of the range, down and up."""
    below = bool(groups.layout.scales)
    low, high = groups.values.amin(0), groups.values.amax(0)
    middle = torch.zeros_like(low) if below else (low + high) / 2
    low = (low - middle).clamp_max_(0)
    high = high - middle
    one, total = groups.counts.sum(0), torch.mul(groups.counts, groups.values, out=groups.placed).sum(0)

    def sums(scale: torch.Tensor, least: torch.Tensor) -> Sums:
        inverse = inverted(scale)
        return Sums._make((*groups.sums(inverse, least * inverse), one, total))

    tried = [sums((high * up - low * down) / (groups.layout.codes - 1), -(low * down + middle)) for down, up in shares]
    all_sums = Sums._make((*(torch.stack(each) for each in zip(*(each[:3] for each in tried))), one, total))
    found = _picked(list(zip(*all_sums.best(below=below), *all_sums[:3])))
    for _ in range(rounds):
        new = sums(found[1], found[2])
        found = _picked([found, [*new.best(below=below), *new[:3]]])
    return found[1], found[2], Sums._make((*found[3:], one, total))


def settled_lower(groups: Groups, scale: torch.Tensor, sums: Sums, rounds: int) -> Steps:
    """As ``settled``, with minima: the best for each scale that is tried, and steps of both follow together."""
    layout, by_block = groups.layout, groups.by_block
    one, total = sums.one, sums.total
    step = stepped(by_block(scale), by_block((sums.square - divided(sums.plain.square(), one)).clamp_min_(0)), layout)
    whole = whole_numbers(by_block(scale), step[:, None], layout)
    free = divided((step[:, None] * whole).flatten() * sums.plain - total, one).clamp_min_(0)
    least = stepped(by_block(free), by_block(one), layout)
    below = whole_numbers(by_block(free), least[:, None], layout)
    best = [torch.full_like(step, -torch.inf), step, whole, least, below]
    for _ in range(rounds):
        tried, under = [], (least[:, None] * below).flatten()
        for off in (0, -1, 1):
            own = (whole + off).clamp_(0, layout.scales - 1)
            size = (step[:, None] * own).flatten()
            inverse = inverted(size)
            seen = Sums._make((*groups.sums(inverse, under * inverse), one, total))
            lower = whole_numbers(by_block(divided(size * seen.plain - total, one)), least[:, None], layout)
            tried.append((seen.saved(size, (least[:, None] * lower).flatten()), own.flatten(), lower.flatten(), *seen[:3]))
        gain, whole, below, *rest = map(by_block, _picked(tried))
        best = _better(best, [gain.sum(1), step, whole, least, below])
        step, least = _steps(whole, below, Sums._make((*rest, by_block(one), by_block(total))), step, least)
    return Steps(*best[1:])


def _steps(
    whole: torch.Tensor, below: torch.Tensor, sums: Sums, step: torch.Tensor, least: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The best steps of scales and minima for given codes and whole numbers; those there are where nothing tells better ones."""
    first, second = (whole * sums.pull).sum(1), -(below * sums.total).sum(1)
    square, one = (whole.square() * sums.square).sum(1), (below.square() * sums.one).sum(1)
    cross = -(whole * below * sums.plain).sum(1)
    span = square * one - cross.square()
    new, low = divided(first * one - second * cross, span), divided(square * second - cross * first, span)
    alone = (span <= 0) | (low <= 0) | (new <= 0)
    new, low = half(torch.where(alone, divided(first, square), new)), half(torch.where(alone, 0.0, low))
    return torch.where(new > 0, new, step), torch.where(low > 0, low, least)
