"""Where a token is felt: one of them is exchanged for another, and what changes shows how the tokens of all tensors lie."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch

from modicum.data.splits import Batch
from modicum.sweep.cover import entry

Seen = dict[str, torch.Tensor]
"""What a forward showed: by name, signatures of tensors, in the order of calls."""

Stir = tuple[str, Callable[[torch.Tensor], torch.Tensor]]
"""A tensor by its name among what is seen, and what is put in its place."""

Run = Callable[[Batch, Stir | None], Seen]

Layout = tuple[tuple[int, ...], bool]
"""The axes of a tensor along a mask's rows and tokens; or one, where tokens lie one behind the other, and whether column by column."""

# Tokens that are exchanged to see whether a tensor's tokens follow them; how far what is felt must move with them, and how strictly.
_TOKENS, _FEWEST, _SLOPE, _STRICT = 8, 4, 0.1, 0.9
# Numbers that a token is folded into, and the least by which what differs does.
_NUMBERS, _LEAST = 6, 1e-150


def signature(value: torch.Tensor, *, whole: bool = False) -> torch.Tensor:
    """A few numbers for each token of a tensor, along a last axis: equal where tokens are, and as far apart, nearly.

    Its last axis is folded into them, infinities as numbers; not so where it is ``whole``, or holds indices.
    """
    value = torch.view_as_real(value.detach()) if value.is_complex() else value.detach()
    if whole or value.ndim < 2 or not value.is_floating_point():
        return value.cpu()[..., None]
    chance = torch.randn(value.shape[-1], _NUMBERS, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(value.device)
    return (torch.nan_to_num(value.double(), nan=5.0, posinf=3.0, neginf=-3.0) @ chance).cpu()


@dataclass(frozen=True)
class Stream:
    """A tensor with tokens: of a batch, or ``inner``, met on the way. ``laid`` is how a mask of ``size`` (rows, tokens) lies in it."""

    name: Any
    laid: Layout
    size: tuple[int, int]
    inner: bool = False

    def token(self, value: torch.Tensor, place: tuple[int, int]) -> torch.Tensor:
        """What stands at a row's token, as a view."""
        axes, across = self.laid
        index: list[Any] = [slice(None)] * value.ndim
        if len(axes) == 1:
            place = (place[1] * self.size[0] + place[0] if across else place[0] * self.size[1] + place[1],)  # type: ignore[assignment]
        for axis, number in zip(axes, place):
            index[axis] = number
        return value[tuple(index)]

    def exchanged(self, value: torch.Tensor, place: tuple[int, int]) -> torch.Tensor:
        """The tensor with the nearest other token of the same row that holds something else in the place of one: it is valid here."""
        made, here = value.clone(), self.token(value, place)
        for other in sorted(range(self.size[1]), key=lambda other: abs(other - place[1])):
            there = self.token(value, (place[0], other))
            if not torch.equal(there, here):
                self.token(made, place).copy_(there)
                break
        return made

    def possible(self, batch: Batch, place: tuple[int, int]) -> bool:
        """Whether a token of the batch has another to be exchanged for."""
        value = None if self.inner else entry(batch, self.name)
        return value is None or not torch.equal(self.exchanged(value, place), value)

    def stirred(self, run: Run, batch: Batch, place: tuple[int, int]) -> Seen:
        """What a forward shows with one token exchanged."""
        change = lambda value: self.exchanged(value, place)
        if self.inner:
            return run(batch, (self.name, change))
        return run(changed(batch, lambda key, value: change(value) if key == self.name else value), None)


def changed(batch: Batch, change: Callable[[Any, torch.Tensor], torch.Tensor]) -> Batch:
    """The batch with every tensor changed, which is given with its name or place."""
    if isinstance(batch, Mapping):
        return {key: change(key, value) for key, value in batch.items()}
    return tuple(change(key, value) for key, value in enumerate(batch))


def layouts(shape: Iterable[int], mask: tuple[int, int]) -> list[Layout]:
    """The ways in which a mask's rows and tokens may lie along the axes of a tensor, by its shape."""
    shape, (rows, tokens) = tuple(shape), mask
    pairs = [(axes, False) for axes in permutations(range(len(shape)), 2) if tuple(shape[axis] for axis in axes) == mask]
    return pairs + [((axis,), across) for axis, length in enumerate(shape) if length == rows * tokens for across in (False, True)]


def by_token(value: torch.Tensor, laid: Layout, mask: tuple[int, int]) -> torch.Tensor:
    """Sums over all but the axes of rows and tokens (rows, tokens)."""
    axes, across = laid
    value = value.double()
    value = value.sum([axis for axis in range(value.ndim) if axis not in axes]) if value.ndim > len(axes) else value
    if len(axes) == 1:
        return value.view(mask[::-1]).T if across else value.view(mask)
    return value if axes[0] < axes[1] else value.T


def difference(before: Seen, after: Seen) -> Seen:
    """By how much each token differs, of tensors that differ at all and kept their shapes."""
    found = {}
    for name, value in before.items():
        other = after.get(name)
        if other is not None and other.shape == value.shape and bool((differs := (value != other).any(-1)).any()):
            far = torch.nan_to_num(other.double() - value.double(), nan=1.0, posinf=1.0, neginf=1.0).norm(dim=-1)
            found[name] = torch.where(differs, far.clamp_min(_LEAST), 0.0)
    return found


def alone(felt: torch.Tensor, mask: tuple[int, int], place: tuple[int, int]) -> Layout | None:
    """How tokens lie in a tensor in which that of ``place`` alone is felt; None where more are."""
    for laid in layouts(felt.shape, mask):
        tokens = by_token(felt, laid, mask)
        if float(tokens[place]) > 0 and int((tokens > 0).sum()) == 1:
            return laid
    return None


def spread(length: int) -> list[int]:
    """Tokens to exchange one after the other: all of few, else some from the first to the last."""
    few = min(length, _TOKENS)
    return sorted({round(number * (length - 1) / max(1, few - 1)) for number in range(few)})


def following(felt: Mapping[int, Seen], mask: tuple[int, int], row: int) -> dict[str, Layout]:
    """Tensors whose tokens follow those that were exchanged, with how they lie: what is felt of each, at its own place too, moves along with it.

    ``felt`` has by token of ``row`` what differed. Where layers pass something on from one token to others, it is not felt at its own place alone;
    but what reaches all tokens of another text alike does not move.
    """
    felt_by = dict[str, dict[int, torch.Tensor]]()
    for token, seen in felt.items():
        for name, value in seen.items():
            felt_by.setdefault(name, {})[token] = value
    found = dict[str, Layout]()
    for name, values in felt_by.items():  # rounding may leave nothing of some
        if 2 * len(values) >= len(felt) and len({value.shape for value in values.values()}) == 1:
            fit = [laid for laid in layouts(next(iter(values.values())).shape, mask) if _follows(values, laid, mask, row)]
            found |= {name: fit[0]} if fit else {}
    return found


def _follows(felt: Mapping[int, torch.Tensor], laid: Layout, mask: tuple[int, int], row: int) -> bool:
    tokens = {token: by_token(value, laid, mask) for token, value in felt.items()}
    if any(float(value[row, token]) == 0 or bool(value[torch.arange(mask[0]) != row].any()) for token, value in tokens.items()):
        return False
    lines = torch.stack([value[row] for value in tokens.values()])
    if bool(((lines > 0).sum(1) == 1).all()):
        return True
    places = torch.tensor(list(tokens), dtype=torch.float64)
    if len(places) < _FEWEST:
        return False
    share = lines / lines.mean(0).clamp_min(_LEAST)
    centre = (share * torch.arange(mask[1])).sum(1) / share.sum(1)
    apart, moved = places - places.mean(), centre - centre.mean()
    slope, strict = float((apart * moved).sum() / apart.square().sum()), float((apart * moved).sum() / (apart.norm() * moved.norm()))
    return slope >= _SLOPE and strict >= _STRICT
