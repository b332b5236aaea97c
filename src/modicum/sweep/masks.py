"""To which tokens a mask belongs: learnt by marking one of them and seeing whose influence vanishes, never by equal shapes.

A mask that a model obeys makes what stands in a marked place felt nowhere else. So one token of one input is exchanged twice, as the mask stands and
with the token's entry flipped: where the change goes beyond its own token in one of the two and not in the other, the latter marks padding,
and every tensor that changed at that token alone has its tokens under this mask. An encoder's and a decoder's mask of one length, padding on
either side, additive masks, and masks whose True means padding are told apart so.

Other layers may not obey it: a recurrent layer, or a convolution along the tokens, passes padding on to what is none. What such a layer gives
still has tokens, and they are under the mask where what is felt of a token moves with it (`sweep.felt`). Where such a layer comes first,
tokens are exchanged behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from modicum.data.splits import Batch, count_rows
from modicum.sweep.cover import SIDES, Cover, Product, entries, entry, flags, flipped, marks, mask, masks, parts_tokens, restated
from modicum.sweep.felt import Layout, Run, Seen, Stream, alone, by_token, changed, difference, following, layouts, spread
from modicum.sweep.learnt import Learnt

# Tensors met on the way at which a token is exchanged, and tokens tried there; tokens that must agree where a pooled answer alone says
# what is padding.
_INNER, _INNER_TOKENS, _VOTES = 6, 3, 3
# Tensors whose tokens are exchanged in turn, to follow them through layers that pass padding on, and of those before one of which nothing is told.
_STEPS, _NEAR = 16, 4


def learn(run: Run, batches: Iterable[Batch]) -> Learnt:
    """Find the masks of batches and what each covers, by a few forwards of two rows where there is padding, by none where there is not."""
    found, batches = Learnt(), [batch for batch in batches if len(entries(batch)) > 1]  # a lone tensor is what a mask would be of
    padded = _padded(batches)
    for batch in batches:
        unread = [key for key, value in masks(batch) if key not in {key for key, _ in padded} and parts_tokens(value)]
        found.unclear += [str(key) for key in unread if str(key) not in found.unclear]
    for (key, side), batch in padded.items():
        if (trials := _tried(run, batch, key, side)) is None:
            continue
        if not trials.covers and not found.read.get(str(key)) and side != SIDES[0]:
            _untold(found, trials, mask(batch, key))  # type: ignore[arg-type]
        if side and trials.covers:
            found.read.setdefault(str(key), {})[side] = next(iter(trials.covers))
        _merge(found, trials.covers, batches)
        found.passed |= {str(key): trials.passed} if trials.passed else {}
        found.loose |= {str(key): trials.loose} if trials.loose else {}
    uncovered = {key: [name for name in names if name not in found.covers] for key, names in found.loose.items()}
    found.loose = {key: names for key, names in uncovered.items() if names}
    return found


def _untold(found: Learnt, trials: _Trials, value: torch.Tensor) -> None:
    """Keep that of a mask nothing could be told; what may be none (of other values than two, or looked up in a table) is not spoken of."""
    if not trials.heeded and flags(value) is not None:
        found.ignored.append(str(trials.key))
    elif trials.heeded and not trials.looked_up and (flags(value) is not None or parts_tokens(value)):
        found.unclear.append(str(trials.key))


def _merge(found: Learnt, covers: dict[str, Cover], batches: Sequence[Batch]) -> None:
    """Add what another mask covers; a tensor that two masks cover with different padding is under neither."""
    for name, cover in covers.items():
        before = found.covers.get(name, cover)
        if before.axes == cover.axes and before.across == cover.across and all(_alike(before, cover, batch) for batch in batches):
            found.covers[name] = before
        else:
            del found.covers[name]
            found.loose.setdefault(f"{before.key}, {cover.key}", []).append(name)


def _alike(one: Cover, other: Cover, batch: Batch) -> bool:
    pair = [None if (held := marks(batch, cover.key, cover.side)) is None else held == cover.zero for cover in (one, other)]
    return one == other or (pair[0] is not None and pair[1] is not None and torch.equal(*pair))  # type: ignore[arg-type]


def _padded(batches: Sequence[Batch]) -> dict[tuple[Any, str], Batch]:
    """By mask and reading the first batch of several rows, else the first of all, that has both kinds of entries in one row."""
    pairs = [(key, value) for batch in batches for key, value in masks(batch) if parts_tokens(value)]
    double = {key for key, _ in pairs} - {key for key, value in pairs if Product.of(value) is None}
    found: dict[tuple[Any, str], Batch] = {}
    for batch in batches:
        for key, value in entries(batch):
            wide = value.ndim > 0 and len(value) > 1
            for read in [(key, side) for side in (SIDES if key in double else ("",))]:
                if (read not in found or (wide and len(entry(found[read], key)) < 2)) and _mixed(batch, *read) is not None:  # type: ignore[arg-type]
                    found[read] = batch
    return found


def _mixed(batch: Batch, key: Any, side: str) -> int | None:
    """The row of a mask with the fewest marks beside others, or None."""
    held = marks(batch, key, side)
    if held is None or held.shape[1] < 2 or (side and Product.of(mask(batch, key)) is None):  # type: ignore[arg-type]
        return None
    rare = torch.minimum(held.sum(1), (~held).sum(1))
    return int(rare.argmax()) if int(rare.max()) else None


def _tried(run: Run, batch: Batch, key: Any, side: str) -> _Trials | None:
    """What was learnt of a mask; None where the model cannot run."""
    for few, row in _shortest(batch, key, side):
        trials = _Trials(run, few, key, row, side)
        try:
            trials.seen()
        except Exception:  # a model that cannot run on a part of the rows
            continue
        trials.learn()
        return trials
    return None


def _shortest(batch: Batch, key: Any, side: str) -> Iterator[tuple[Batch, int]]:
    """Two rows of the batch where all its tensors have as many, then the whole; and the row to try."""
    row, rows = _mixed(batch, key, side), count_rows(batch)
    assert row is not None
    if rows > 2 and all(value.ndim and len(value) == rows for _, value in entries(batch)):
        other = next(each for each in range(rows) if each != row)
        yield changed(batch, lambda _, value: value[[other, row]]), 1
    yield batch, row


class _Trials:
    """Tokens of one row exchanged, with their entries of a mask as they are and flipped; afterwards what that showed.

    ``heeded``: whether the mask changes anything; ``looked_up``: whether it is what a table is asked for; ``covers``, ``passed`` and ``loose`` as of
    what was learnt.
    """

    def __init__(self, run: Run, batch: Batch, key: Any, row: int, side: str = ""):
        self.run, self.batch, self.key, self.row, self.side = run, batch, key, row, side
        held = marks(batch, key, side)
        assert held is not None
        self.marks, self.size = held, (held.shape[0], held.shape[1])
        self._seen: dict[int | None, Seen] = {}
        self._flips: dict[int, Batch | None] = {}
        self.covers: dict[str, Cover] = {}
        self.found: Stream | None = None
        self.passed, self.loose, self.zero = "", list[str](), False

    # What is run

    def seen(self, token: int | None = None) -> Seen:
        """What is seen with the mask as it is, or with a token's entry flipped."""
        if token not in self._seen:
            given = self.batch if token is None else self.flip(token)
            assert given is not None
            self._seen[token] = self.run(given, None)
        return self._seen[token]

    def flip(self, token: int) -> Batch | None:
        """The batch with a token marked as those of the other kind are; None where a mask cannot say that of it alone."""
        if token not in self._flips:
            made = flipped(self.batch, self.key, (self.row, token), self.side)
            self._flips[token] = None if made is None else changed(self.batch, lambda key, value: made if key == self.key else value)
        return self._flips[token]

    def felt(self, stream: Stream, token: int, *, flip: bool) -> Seen:
        """What differs where the token is exchanged."""
        given = self.flip(token) if flip else self.batch
        assert given is not None
        return difference(self.seen(token if flip else None), stream.stirred(self.run, given, (self.row, token)))

    # What is learnt

    def learn(self) -> None:
        """Exchange tokens until that tells something."""
        streams = self._streams()
        if self.heeded:
            tries = [(stream, token) for token in self._tokens for stream in streams if self._possible(stream, token)]
            behind = ((stream, token) for stream in self._inner() for token in self._tokens[:_INNER_TOKENS])
            if not any(self._told(*each, _silences) for each in tries) and not self.looked_up:
                any(self._told(*each, _silences) for each in behind) or self._vanishes(tries)
        if self.found is not None and (self.found.inner or any(self._has_tokens(self.seen()[name]) for name in self.loose)):
            self._follow(streams)
        self.loose = [name for name in self.loose if self._has_tokens(self.seen()[name])]

    @cached_property
    def heeded(self) -> bool:
        """Whether a token's mark changes anything that is seen, or the marks of a whole row do."""
        return any(difference(self.seen(), self.seen(token)) for token in self._tokens if self._runs(token)) or self._row_heeded()

    def _row_heeded(self) -> bool:
        said = mask(self.batch, self.key)
        return said is not None and flags(said) is not None and any(self._differs(said != 0, kind) for kind in (False, True))

    def _differs(self, said: torch.Tensor, kind: bool) -> bool:
        said = said.clone()
        said[self.row] = kind
        filled = restated(self.batch, self.key, said)
        try:
            return bool(difference(self.seen(), self.run(changed(self.batch, lambda key, held: filled if key == self.key else held), None)))
        except Exception:  # whatever a forward raises at a row of padding
            return True

    @property
    def looked_up(self) -> bool:
        """Whether the mask's own numbers go into a table."""
        value = entry(self.batch, self.key)
        return any(
            not seen.is_floating_point() and value is not None and torch.equal(seen[..., 0], value.cpu()) for seen in self.seen().values()
        )

    @cached_property
    def _tokens(self) -> list[int]:
        """Tokens to try: of both kinds the middle, the last and the first, the more frequent kind's first."""
        held = self.marks[self.row]
        kinds = sorted((held.nonzero()[:, 0].tolist(), (~held).nonzero()[:, 0].tolist()), key=lambda found: -len(found))
        tokens = dict.fromkeys(place for found in kinds for place in (found[len(found) // 2], found[-1], found[0]))
        return [token for token in tokens if self.flip(token) is not None]

    def _possible(self, stream: Stream, token: int) -> bool:
        return stream.possible(self.batch, (self.row, token))

    def _runs(self, token: int) -> bool:
        try:
            return self.flip(token) is not None and bool(self.seen(token))
        except Exception:  # a mask with holes, which not every model takes
            return False

    def _streams(self) -> list[Stream]:
        """Tensors of the batch that have the mask's two axes; those with fractions first, then indices, other masks not."""
        rows, tokens = self.size
        found = []
        for other, value in entries(self.batch):
            axes = [(0, axis) for axis in range(1, value.ndim) if value.shape[axis] == tokens and value.shape[0] == rows]
            axes += [(1, 0)] if value.ndim > 1 and value.shape[:2] == (tokens, rows) and rows != tokens else []
            if other != self.key and axes and (value.ndim > 2 or flags(value) is None):
                found.append((not value.is_floating_point(), Stream(other, (axes[0], False), self.size)))
        return [stream for _, stream in sorted(found, key=lambda pair: pair[0])]

    def _inner(self) -> list[Stream]:
        """Tensors met on the way that have the mask's axes and do not feel it, the last of them first: what obeys it comes next."""
        token = next((token for token in self._tokens if self._runs(token) and difference(self.seen(), self.seen(token))), None)
        if token is None:
            return []
        reached = difference(self.seen(), self.seen(token))
        found = []
        for name, value in self.seen().items():
            laid = layouts(value.shape[:-1], self.size)
            if name not in reached and laid and value.is_floating_point():
                found.append(Stream(name, laid[0], self.size, inner=True))
        return found[: -_INNER - 1 : -1]

    def _told(self, stream: Stream, token: int, silences: Callable[..., bool]) -> bool:
        """Whether exchanging one token tells what the mask marks; then what lies under it is known, and what else feels it."""
        felt = self._both(stream, token)
        silent = [flip for flip in felt if silences(felt[flip], felt[not flip], self._marked(token, flip), (self.row, token), self.size)]
        if len(silent) != 1:
            return False
        self.found, self.zero = stream, bool(self.marks[self.row, token]) == silent[0]
        places = {name: alone(value, self.size, (self.row, token)) for name, value in felt[silent[0]].items()}
        self.covers = {name: Cover(self.key, self.zero, *laid, self.side) for name, laid in places.items() if laid is not None}
        self.loose = [name for name, laid in places.items() if laid is None]
        return True

    def _vanishes(self, tries: Sequence[tuple[Stream, int]]) -> bool:
        """Whether what is felt of a token that only a pooled answer could pass on vanishes where it is marked, whichever is tried."""
        said = [self.zero for stream, token in tries if stream == tries[0][0] and self._told(stream, token, _unfelt)]
        if len(said) < _VOTES or len(set(said)) > 1:
            self.found, self.covers, self.loose = None, {}, []
        return self.found is not None

    def _both(self, stream: Stream, token: int) -> dict[bool, Seen]:
        """What differs where a token is exchanged, with its entry as it is and flipped; nothing where the model cannot run so."""
        try:
            return {flip: self.felt(stream, token, flip=flip) for flip in (False, True)} if self._runs(token) else {}
        except Exception:  # whatever a forward raises
            return {}

    def _marked(self, token: int, flip: bool) -> torch.Tensor:
        """Tokens of the row that are marked as this one is."""
        given = self.flip(token) if flip else self.batch
        held = None if given is None else marks(given, self.key, self.side)
        if held is None or held.shape != self.marks.shape:  # few lengths may look like marks
            held = self.marks.clone()
            held[self.row, token] ^= flip
        return held[self.row] == held[self.row, token]

    # What layers pass on that do not obey it

    def _follow(self, streams: Iterable[Stream]) -> None:
        """Cover what follows the tokens that the mask was found to belong to, though more than a marked token feels it.

        First those of the batch; then, wherever such a tensor comes before one of which nothing is told, its own tokens are exchanged.
        """
        felt = list[tuple[int, Seen]]()
        for stream in streams:
            seen = self._each_felt(stream)
            follow = following(seen, self.size, self.row)
            if stream == self.found or any(self.covers[name].axes == follow[name][0] for name in self.covers.keys() & follow.keys()):
                self._cover(follow)
                felt += seen.items()
        tried = set[str]()
        while len(tried) < _STEPS and (inner := self._before(tried)) is not None:
            tried.add(inner.name)
            self._cover(following(self._each_felt(inner), self.size, self.row))
        self.passed = next((name for name in self.seen() if any(self._passed_on(name, *each) for each in felt)), "")
        reached = {name for _, seen in felt for name in seen}.union(self.loose)
        self.loose = [name for name in self.seen() if name in reached and name not in self.covers]

    def _passed_on(self, name: str, token: int, felt: Seen) -> bool:
        """Whether tokens that are no padding feel one that is marked, in a tensor under the mask."""
        if name not in self.covers or name not in felt:
            return False
        tokens = by_token(felt[name], (self.covers[name].axes, self.covers[name].across), self.size)[self.row]
        flip = bool(self.marks[self.row, token]) == self.zero and self._runs(token)
        return bool(tokens[~self._marked(token, flip)].any())

    def _cover(self, follow: Mapping[str, Layout]) -> None:
        self.covers = {name: Cover(self.key, self.zero, *laid, self.side) for name, laid in follow.items()} | self.covers

    def _before(self, tried: set[str]) -> Stream | None:
        """A tensor under the mask after which comes one that is not, though it might be by its shape: the last of those that were not ``tried``."""
        known = list[str]()
        for name, value in self.seen().items():
            if name in self.covers:
                known.append(name)
            elif layouts(value.shape[:-1], self.size) and (left := [each for each in known[-_NEAR:] if each not in tried]):
                cover = self.covers[left[-1]]
                return Stream(left[-1], (cover.axes, cover.across), self.size, inner=True)
        return None

    def _each_felt(self, stream: Stream) -> dict[int, Seen]:
        """What differs by token that is exchanged."""
        return {token: found for token in spread(self.size[1]) if (found := self._padding(stream, token))}

    def _padding(self, stream: Stream, token: int) -> Seen:
        """What differs where a token is exchanged that is marked as padding, if it can be."""
        if not self._possible(stream, token):
            return {}
        flip = bool(self.marks[self.row, token]) == self.zero and self._runs(token)
        try:
            return self.felt(stream, token, flip=flip)
        except Exception:  # whatever a forward raises
            return {}

    def _has_tokens(self, seen: torch.Tensor) -> bool:
        """Whether a tensor may have more positions than rows."""
        return seen.ndim > 2 or (seen.ndim == 2 and len(seen) != self.size[0])


def _silences(silent: Seen, loud: Seen, marked: torch.Tensor, place: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a mark silences the token of ``place``, by what differs with it and without: in some tensor it is felt at its own place alone.

    Or nowhere but at tokens that are ``marked`` like it, though most of the others feel it otherwise: where padding is passed on to padding.
    """
    return any(_quieter(silent[name], loud[name], marked, place, size) for name in silent.keys() & loud.keys())


def _quieter(silent: torch.Tensor, loud: torch.Tensor, marked: torch.Tensor, place: tuple[int, int], size: tuple[int, int]) -> bool:
    if silent.shape != loud.shape or alone(loud, size, place) is not None:
        return False
    return alone(silent, size, place) is not None or any(
        _among(by_token(silent, laid, size) > 0, by_token(loud, laid, size) > 0, marked, place[0]) for laid in layouts(silent.shape, size)
    )


def _among(silent: torch.Tensor, loud: torch.Tensor, marked: torch.Tensor, row: int) -> bool:
    """Whether ``marked`` tokens of a row alone feel it in one, and most of the others too in the other; tokens (rows, tokens) that do are given."""
    outside = silent.clone()
    outside[row] &= ~marked
    return not bool(outside.any()) and 2 * int(loud[row][~marked].sum()) >= int((~marked).sum()) > 0


def _unfelt(silent: Seen, loud: Seen, *_: Any) -> bool:
    """Whether a mark leaves some tensor without any trace of a token, and none where there was none."""
    return silent.keys() < loud.keys()
