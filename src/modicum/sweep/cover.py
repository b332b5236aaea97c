"""Which tokens of a tensor a mask of the batch covers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from modicum.data.splits import Batch, count_rows

# Beyond this an additive mask leaves nothing of a score; beyond the second so does one that holds biases of positions beside.
_NOTHING, _FAR = -100.0, -1e4


@dataclass(frozen=True)
class Cover:
    """A mask that belongs to a tensor's tokens.

    ``key`` names the mask in its batch. ``zero`` says that zeros mark padding, otherwise what is not zero does (True, or the lowest number of an
    additive mask). ``axes`` are those of the tensor that run along the mask's two; one where they lie one behind the other, which ``across``
    says column by column. ``side``: which of the readings of a mask of pairs is meant that has two.
    """

    key: Any
    zero: bool
    axes: tuple[int, ...]
    across: bool = False
    side: str = ""

    def real(self, batch: Batch, shape: Sequence[int]) -> torch.Tensor | None:
        """Which tokens of a tensor of ``shape`` are no padding: bool, of as many axes, to be broadcast; None where all are."""
        pairs = marks(batch, self.key, self.side)
        if pairs is None:
            return None
        real = pairs if self.zero else ~pairs
        return None if bool(real.all()) else self._laid(real, shape)

    def _laid(self, real: torch.Tensor, shape: Sequence[int]) -> torch.Tensor | None:
        if len(self.axes) == 1:
            real = (real.T if self.across else real).reshape(-1)
        elif self.axes[0] > self.axes[1]:
            real = real.T
        axes = sorted(self.axes)
        if axes[-1] >= len(shape) or [shape[axis] for axis in axes] != list(real.shape):
            return None
        return real.reshape([length if axis in axes else 1 for axis, length in enumerate(shape)])


def entries(batch: Batch) -> list[tuple[Any, torch.Tensor]]:
    """Tensors of a batch by name or place."""
    return list(batch.items()) if isinstance(batch, Mapping) else list(enumerate(batch))


def entry(batch: Batch, key: Any) -> torch.Tensor | None:
    """A tensor of a batch by name or place, or None."""
    if isinstance(batch, Mapping):
        return batch.get(key)
    return batch[key] if isinstance(key, int) and key < len(batch) else None


def masks(batch: Batch) -> list[tuple[Any, torch.Tensor]]:
    """Tensors of a batch; those that may be masks say once, as what is not zero, what they say alike of all heads or of all that ask."""
    rows = count_rows(batch)
    return [(key, value if (found := _lean(value, rows)) is None else found) for key, value in entries(batch)]


def mask(batch: Batch, key: Any) -> torch.Tensor | None:
    """One of ``masks``."""
    value = entry(batch, key)
    found = None if value is None else _lean(value, count_rows(batch))
    return value if found is None else found


def _lean(value: torch.Tensor, rows: int) -> torch.Tensor | None:
    """What is not zero of a mask of pairs, of one head; of one token that asks, where all are told the same. None of anything else."""
    value = _by_head(value, rows)
    if (
        value.ndim < 3
        or value.numel() == 0
        or not (value.ndim == 4 or value.shape[-1] == value.shape[-2])
        or (held := _said(value)) is None
    ):
        return None
    for axis in range(1, value.ndim - 1):
        if held.shape[axis] > 1 and torch.equal(first := held.narrow(axis, 0, 1).expand_as(held), held):
            held = first.narrow(axis, 0, 1)
    return held


def _by_head(value: torch.Tensor, rows: int) -> torch.Tensor:
    """A mask (rows × heads, tokens, tokens) with an axis for its heads."""
    if value.ndim != 3 or value.shape[1] != value.shape[2] or len(value) <= rows or len(value) % max(rows, 1):
        return value
    return value.reshape(rows, -1, *value.shape[1:])


def _said(value: torch.Tensor) -> torch.Tensor | None:
    """What is not zero; of biases with lowest numbers among them those. None of a tensor that is no mask."""
    if _two_valued(value):
        return value != 0
    return value <= _FAR if value.is_floating_point() and bool((value <= _FAR).any()) else None


def restated(batch: Batch, key: Any, said: torch.Tensor) -> torch.Tensor:
    """The tensor of a batch that says ``said`` where ``masks`` shows what it says now."""
    value, before = entry(batch, key), mask(batch, key)
    assert value is not None and before is not None
    by_head = _by_head(value, count_rows(batch)) if before.ndim > value.ndim else value
    held = by_head <= _FAR if before.dtype == torch.bool and not _two_valued(value) else by_head != 0
    made = by_head.clone()
    for kind in (True, False):
        changed = ((said != 0) == kind) & ((before != 0) != kind)
        if bool(changed.any()):
            made[changed.expand_as(held)] = by_head[held == kind].flatten()[0]
    return made.reshape(value.shape)


@dataclass(frozen=True)
class Product:
    """A mask of pairs that leaves out some tokens of its ``rows`` and others of its ``columns``: that of one text and those another is asked for.

    Pairs (rows, tokens, tokens) that meet: those of which neither is left out, and which the ``order`` of tokens lets meet; where ``turned``, they
    are zeros.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    order: torch.Tensor
    turned: bool

    @classmethod
    def of(cls, value: torch.Tensor) -> Product | None:
        """What a mask is the product of; None where it has one reading, or is no mask of pairs."""
        if not _square(value) or not _two_valued(value):
            return None
        pairs = (value != 0).reshape(len(value), *value.shape[-2:])
        for turned in (False, True):
            meet = pairs ^ turned
            found = cls(meet.any(2), meet.any(1), meet.any(0), turned)
            both = replace(found, rows=found.rows | found.columns, columns=found.rows | found.columns)
            if torch.equal(found.pairs(), pairs) and not torch.equal(both.pairs(), pairs):
                return None if bool(found.rows.all()) or bool(found.columns.all()) else found
        return None

    def pairs(self) -> torch.Tensor:
        """What is not zero."""
        return (self.rows[:, :, None] & self.columns[:, None] & self.order) ^ self.turned

    def marks(self, side: str) -> torch.Tensor:
        """Tokens (rows, tokens) by ``rows`` or ``columns``, as the mask holds them: where it is not zero."""
        return getattr(self, side) ^ self.turned

    def flipped(self, side: str, place: tuple[int, int]) -> torch.Tensor:
        """What is not zero once a token is left out of a side, or is not any more."""
        made = getattr(self, side).clone()
        made[place] = ~made[place]
        return replace(self, **{side: made}).pairs()


# Readings of a mask of pairs that has two: whose influence it silences comes first.
SIDES = ("columns", "rows")


def marks(batch: Batch, key: Any, side: str = "") -> torch.Tensor | None:
    """A mask of a batch as a matrix (rows, tokens) of what is not zero: it may hold an entry for each token or each pair of tokens, or lengths."""
    value = mask(batch, key)
    if value is None:
        return None
    if side and (product := Product.of(value)) is not None:
        return product.marks(side)
    for found in (flags(value), _of_pairs(value), _of_lengths(batch, value)):
        if found is not None:
            return found
    return None


def flipped(batch: Batch, key: Any, place: tuple[int, int], side: str = "") -> torch.Tensor | None:
    """The mask with one token marked as those of the other kind are, and of lengths those after or before it too; None where that cannot be said."""
    value, held = mask(batch, key), marks(batch, key, side)
    assert value is not None and held is not None
    if side:
        product = Product.of(value)
        return None if product is None else restated(batch, key, product.flipped(side, place).view(value.shape))
    row, token = place
    others = (held[row] != held[row, token]).nonzero()[:, 0]
    if flags(value) is not None:
        said = value != 0
        said.view(len(said), -1)[place] ^= True
        return restated(batch, key, said)
    if not len(others):
        return None
    if is_lengths(value):
        made = value.clone()
        made.view(-1)[row] = token + (token >= int(value.reshape(-1)[row]))
        return made
    return restated(batch, key, _turned(value != 0, row, token, int(others[0]), bool(held[row, others[0]])))


def _turned(said: torch.Tensor, row: int, token: int, like: int, held: bool) -> torch.Tensor:
    """A mask of pairs in which a token of a row meets what another one does, which is ``held``."""
    said = said.clone()
    pairs = said.view(len(said), *said.shape[-2:])[row]
    given = pairs.clone()
    pairs[:, token], pairs[token] = given[:, like], given[like]
    pairs[token, token] = given[like, like]
    pairs[like, token] = pairs[token, like] = given[like, like] if held == bool(given[like, like]) else given[token, like]
    return said


def is_lengths(value: torch.Tensor) -> bool:
    """Whether a tensor may say how many tokens each row has."""
    whole = not value.is_floating_point() and not value.is_complex() and value.dtype != torch.bool
    return whole and value.ndim in (1, 2) and value.numel() == len(value) and int(value.min()) >= 0


def _of_lengths(batch: Batch, value: torch.Tensor) -> torch.Tensor | None:
    """Tokens before a row's length, where a tensor of the batch has as many rows, and tokens enough."""
    if not value.numel() or not is_lengths(value):
        return None
    sizes = [other.shape[1] for _, other in entries(batch) if other is not value and other.ndim > 1 and len(other) == len(value)]
    tokens = next((size for size in sizes if size > 1 and size >= int(value.max())), None)
    return None if tokens is None else torch.arange(tokens, device=value.device) < value.reshape(-1, 1)


def _of_pairs(value: torch.Tensor) -> torch.Tensor | None:
    """Which tokens are met at all, of a mask (rows, tokens, tokens): by themselves, else by others, whichever tells some from others.

    The last token under a causal mask is met by none, but meets others; where what is not zero parts tokens, padding is parted from all both ways.
    """
    if not _square(value) or not _two_valued(value):
        return None
    pairs = (value != 0).reshape(len(value), *value.shape[-2:])
    own, apart = pairs.diagonal(dim1=1, dim2=2), torch.eye(pairs.shape[-1], dtype=torch.bool, device=value.device)
    others, all_but_self = pairs & ~apart, pairs | apart
    readings = (own, others.any(1) | others.any(2), all_but_self.all(1) & all_but_self.all(2), all_but_self.all(1))
    # Under a causal mask all but the first token are met by some alone.
    return next((reading for reading in readings if bool((reading.any(1) & ~reading.all(1)).any()) and int(reading.sum(1).max()) > 1), own)


def parts_tokens(value: torch.Tensor) -> bool:
    """Whether a mask of pairs, or of heads that differ, says of its rows different things, as padding does and the order of tokens does not."""
    pairs = value.ndim > 2 and value.shape[-1] == value.shape[-2] > 1
    return (pairs or (value.ndim == 4 and value.shape[1] > 1)) and _two_valued(value) and bool(((value != 0) != (value[:1] != 0)).any())


def flags(value: torch.Tensor) -> torch.Tensor | None:
    """A mask as a matrix of what is not zero; None for a tensor that is no mask: more values than two, or axes than two."""
    if value.ndim < 2 or value.numel() == 0 or value[0].numel() != value.shape[-1] or not _two_valued(value):
        return None
    return value.reshape(len(value), -1) != 0


def _square(value: torch.Tensor) -> bool:
    return value.ndim > 2 and value.shape[-1] == value.shape[-2] > 1 and value[0].numel() == value.shape[-1] ** 2


def _two_valued(value: torch.Tensor) -> bool:
    others = value[value != 0]
    return not others.numel() or bool((others == 1).all()) or _additive(others)


def _additive(values: torch.Tensor) -> bool:
    return values.is_floating_point() and bool((values <= _NOTHING).all())
