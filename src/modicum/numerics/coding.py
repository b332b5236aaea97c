"""Codes for an entropy coder: rounded under steps that settle on a size, column by column where a covariance of inputs is known.

With ``H = M D Mᵀ`` (see ``numerics/solver.py``) the error is ``Σ_k D_k (c_k - q_k)²`` over a row's columns. At equal bits in all it is least where
each term is the same: steps fall with ``1 / √D_k``, so that columns that matter little take few bits, down to none. That is water-filling over
conditional variances.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from typing_extensions import override

from modicum.core.blocks import Blocks, spans
from modicum.core.errors import SettingError
from modicum.forms import rans
from modicum.forms.coded import BESIDE, WIDEST, Coded, exact_scale, side_bytes, steps, stream_bytes, tables
from modicum.forms.trellis import SEGMENT, STATES, shifted
from modicum.numerics import trellis
from modicum.numerics.exponents import falling
from modicum.numerics.foreseen import FREE, aim, between, inverse, nearer
from modicum.numerics.solver import BlockFactor, Factor, laned, slabs, solve

# Weights from which the size of codes is foreseen.
_SAMPLE = 1 << 15
# Octaves of steps around the deviation of all weights, in which sizes are foreseen.
_OCTAVES = torch.arange(-8.0, 5.0, 0.25)
# Rounds in which steps are put right, those after which codes are made otherwise, and those of plain rounding where nothing else did it; how much
# coarser plain steps get from round to round.
_ROUNDS, _PATIENCE, _PLAIN, _COARSER = 8, 4, 40, 1.2
# Bytes that a lane takes beside its numbers, about and at the most, and how near to its room a stream on paths is written to count them.
_LANE, _MOST_LANE, _COUNTED = 1.5, 4, 0.03
# By what a scale grows where the nearest one was met and is too fine.
_STEP = 1 + 1 / 64
# Share of a stream that exponents may take before columns, and rows, are taken as alike.
_SIDE = 0.2
# Tables beside that of a row's own deviation that it may take: errors of earlier columns make weights larger than they were.
_BESIDE = (-1, 0, 1, 2, 4)
# How far from its room the first codes on paths may be for the curve alone to say where the next ones should be; octaves around the first scale;
# bits that codes on a path take more than plain ones with feedback, and how much less that is for each bit of the rate.
_NEAR, _AROUND, _MORE, _LESS = 0.01, (-0.05, 0.05, 0.2), 0.09, 0.0125
# Digits of how far the best scale is off.
_OFF = 4
# The least share of the energy that errors are taken to be: float32 tells no smaller ones.
_EXACT = 1e-6
# Tables beside the last of those by which a path's bits are priced.
_WIDER = 2
# What a column of one and a half times an octave may say, so that its codes times three are whole numbers of eight bits, and how much larger than
# those of a typical column its codes may be, in octaves, for this not to matter up to so many bits.
_THIRD, _LARGER, _FINE = rans.TOP // 3, 1.0, 4.5
# Most bits for which codes follow a trellis: beyond, they are too large for twice them to be told in eight bits, and columns of one and a half times
# an octave would be few. Up to so many, codes of columns so many octaves finer than a typical one still have room.
PATHS, _ROOM = 4.0, 4.25
# Deviations that a column's largest weight is taken to be at the least.
_PEAK = 4.5
# Bits that codes on a path take more than plain rounding under the same steps does.
_DEARER = 0.13


@dataclass(frozen=True)
class _Trial:
    """Codes int8 (rows, columns) under a scale, the table of each row, and the bytes of their stream, which may be more than there are; the best
    scale for them, and as how many bytes less the error counts that it has on the nearest scale that is written.
    """

    codes: torch.Tensor
    rows: torch.Tensor
    scale: float
    size: int
    best: float = 0.0
    lost: float = 0.0

    @property
    def worth(self) -> float:
        return self.size - self.lost


def coded(
    weight: torch.Tensor, bits: Sequence[float], dtype: torch.dtype, *, factor: Factor | BlockFactor | None = None,
    order: torch.Tensor | None = None, moment: torch.Tensor | Blocks | None = None, raised: torch.Tensor | None = None,
    events: list[str] | None = None, paths: bool = False, otherwise: Callable[[float], Coded] | None = None,
) -> list[Coded]:  # fmt: skip
    """A form of float32 ``weight`` (rows, columns) for each of ``bits`` per weight, its step the finest that the stream has room for.

    With the ``factor`` of the ``moment`` of inputs (columns, columns), whose columns stand in ``order``, later columns absorb the errors of earlier
    ones; without it every weight is rounded to the nearest. Steps of rows are ``raised`` (rows,) by so many quarters of an octave. With ``paths``
    codes of few bits are the best path of their column through a trellis. Where errors that are handed on take more bits than coarser steps save,
    the form is what ``otherwise`` gives for the bits; without it weights are rounded to the nearest, which ``events`` is told. Raises
    ``SettingError`` where no codes of a few weights are small enough.
    """
    found: dict[float, Coded] = {}
    kinds = {each: _Kind.of(each, paths) for each in dict.fromkeys(bits)}
    for kind in dict.fromkeys(kinds.values()):
        if mine := [each for each, own in kinds.items() if own == kind]:
            coding = _Coding(weight, factor, order, moment, raised, kind, otherwise)
            found |= {mine[place]: form for place, form in coding.forms(mine, dtype).items()}
            if events is not None:
                events += coding.events
    if lacking := kinds.keys() - found:
        raise SettingError(
            f"a rate of {min(lacking):g}: must hold the codes of {weight.numel()} weights, does not. Take a higher one, or keep them."
        )
    return [found[each] for each in bits]


@dataclass(frozen=True)
class _Kind:
    """How codes of a rate are made: columns ``larger`` by so many octaves than typical ones take whole octaves; whether codes follow ``paths``."""

    larger: float
    paths: bool = False

    @classmethod
    def of(cls, bits: float, paths: bool) -> _Kind:
        if paths and bits <= PATHS:
            return cls(_ROOM - math.ceil(bits), True)
        return cls(_LARGER if bits <= _FINE else -math.inf)


class _Coding:
    """What all sizes of one weight have in common."""

    def __init__(
        self, weight: torch.Tensor, factor: Factor | BlockFactor | None, order: torch.Tensor | None, moment: torch.Tensor | Blocks | None,
        raised: torch.Tensor | None, kind: _Kind, otherwise: Callable[[float], Coded] | None,
    ):  # fmt: skip
        self.paths, self.otherwise = kind.paths, otherwise
        # Rows do not meet: each is coded in units of its step.
        self.raised = torch.zeros(len(weight), dtype=torch.int16) if raised is None else raised
        weight = weight / steps(self.raised, 1.0)[:, None]
        # In units of its size, so that no square is beyond float32.
        self.size = 2.0 ** math.floor(math.log2(max(float(weight.abs().max()), 2.0**-120)))
        self.weight, self.factor, self.order, self.moment = weight / self.size, factor, order, moment
        felt = self.weight if moment is None else torch.cat([self.weight[:, columns] @ square for columns, square in spans(moment)], 1)
        self.energy = float((self.weight * felt).sum())  # of what the weight gives
        weight = self.weight
        # A row's table must have its largest weight too.
        self.deviation = torch.maximum(weight.square().mean(1).sqrt(), weight.abs().amax(1) / rans.REACH)
        self.finest = float(self.deviation.max()) / 2**rans.LAST
        self.columns = torch.zeros(weight.shape[1], dtype=torch.int16)
        if factor is not None and order is not None:
            peaks = (
                weight.abs().amax(0)[order] / weight.square().mean().sqrt().clamp_min(2.0**-60) if self.paths else torch.ones(len(order))
            )
            self.columns[order] = falling(factor.curvature, kind.larger - (peaks / _PEAK).clamp_min(1).log2())
        self.costs, self.reaches = torch.from_numpy(rans.costs()), torch.from_numpy(rans.reaches())
        third = trellis.TOP_OF_THIRDS if self.paths else _THIRD
        self.unit, self.most = steps(self.columns, 1.0), torch.where(self.columns % 4 == 2, third, rans.TOP)
        self.events: list[str] = []

    def forms(self, bits: Sequence[float], dtype: torch.dtype) -> dict[int, Coded]:
        """The forms by their place in ``bits``."""
        rooms = [stream_bytes((len(self.weight), self.weight.shape[1]), each) for each in bits]
        self._take_alike(stream_bytes((len(self.weight), self.weight.shape[1]), 1.0))
        curve = self._curve()
        written = lambda scale: exact_scale(max(self.finest, scale), dtype, self.raised)
        scales = {place: written(self._first(curve, room)) for place, room in enumerate(rooms)}
        best: dict[int, _Trial] = {}
        late: list[int] = []
        met: dict[int, list[_Trial]] = {place: [] for place in scales}
        for turn in range(_ROUNDS + _PLAIN):
            scales = {place: scale for place, scale in scales.items() if self._worth_more(best.get(place), rooms[place], turn)
                      and all(trial.scale != scale for trial in met[place])}  # fmt: skip
            if turn == _PATIENCE:
                late = [place for place in scales if place not in best]
            if not scales or (turn == _ROUNDS and self.otherwise is not None):
                break
            if turn == _ROUNDS:
                # Errors that columns hand on may grow under steps this coarse: then no scale gives fewer bytes.
                self.factor, scales = None, {place: written(inverse(curve, 8.0 * rooms[place])) for place in scales}
                self.events.append(f"its codes did not settle on a size: {len(scales)} of {len(rooms)} rounded to the nearest")
            for (place, scale), trial in zip(scales.items(), self._tried(scales, rooms)):
                trial = self._scaled(trial, written)
                if trial.size <= rooms[place] and (place not in best or trial.worth > best[place].worth):
                    best[place] = trial
                met[place].append(trial)
                # The best scale for codes is a little off theirs, by as much at all that are near: theirs are such that it can be written.
                off = max(round(met[place][0].best / met[place][0].scale, _OFF), 10**-_OFF)
                aligned = lambda scale, off=off: written(scale * off) / off
                scales[place] = aligned(self._next(curve, met[place], rooms[place]) if turn < _ROUNDS else scale * _COARSER)
                known = {other.scale for other in met[place]}
                if place not in best and scales[place] in known:
                    further = (aligned(max(known) * _STEP**times) for times in itertools.count(1))
                    scales[place] = next(scale for scale in further if scale not in known)
        found = {place: self._finished(trial, bits[place], dtype) for place, trial in best.items()}
        if self.otherwise is None:
            return found
        for place in late:  # or only a scale does at which much is lost
            other = self.otherwise(bits[place])
            if place not in found or self._lost(other) < self._lost(found[place]):
                found[place] = other
        return found

    def _lost(self, form: Coded) -> float:
        """What a form loses under the moment of inputs, each row in units of its step."""
        error = form.dense().float() / steps(self.raised, self.size)[:, None] - self.weight
        if self.moment is None:
            return float(error.square().sum())
        return sum(float(((error[:, columns] @ square) * error[:, columns]).sum()) for columns, square in spans(self.moment))

    def _first(self, curve: tuple[np.ndarray, np.ndarray], room: int) -> float:
        """The scale to begin at: on the curve, or where codes follow paths where plain ones with the same feedback say that it should be.

        Those take an eighth of the work, and nearly as many bits fewer at one scale as at another near by.
        """
        scale, count = inverse(curve, 8.0 * room), self.weight.numel()
        if not self.paths:
            return scale
        scales = [scale * 2**octaves for octaves in _AROUND]
        return between(scales, self._plainly(scales, room), aim(room - (_MORE - _LESS * 8 * room / count) * count / 8))

    def _next(self, curve: tuple[np.ndarray, np.ndarray], met: Sequence[_Trial], room: int) -> float:
        """The scale to go on at: on the curve through the codes that were met; once more by plain ones where the first, on paths, are far off."""
        scale, first = nearer(curve, met, aim(room)), met[0]
        if not self.paths or len(met) > 1 or abs(first.size / room - 1) < _NEAR:
            return scale
        scales = [first.scale, scale, scale * scale / first.scale]
        sizes = self._plainly(scales, room)
        return between(scales, sizes, aim(room - (first.size - sizes[0])))

    def _plainly(self, scales: Sequence[float], room: int) -> list[int]:
        """Bytes of codes on one grid at these scales."""
        return [trial.size for trial in self._tried(dict(enumerate(scales)), [room] * len(scales), paths=False)]

    def _worth_more(self, trial: _Trial | None, room: int, turn: int) -> bool:
        return trial is None or (turn < _ROUNDS and trial.worth < room * (1 - FREE) and trial.scale > self.finest)

    def _take_alike(self, room: int) -> None:
        """Where exponents would take too much of a small stream all columns take one step, and all rows one table."""
        if side_bytes(self.columns, self._tables_of_rows(1.0), self.raised) > _SIDE * room:
            self.columns, self.unit = torch.zeros_like(self.columns), torch.ones_like(self.unit)
            self.most = torch.full_like(self.most, rans.TOP)
            self.deviation = torch.full_like(self.deviation, float(self.deviation.square().mean().sqrt()))

    def _tables_of_rows(self, scale: float) -> torch.Tensor:
        """The table of each row's own deviation at a step of one column, int16 (rows,)."""
        octaves = (self.deviation / scale).clamp_min(2.0**-30).log2()
        return ((octaves - rans.FIRST) * rans.STEPS).round().clamp(-WIDEST // 2, WIDEST).to(torch.int16)

    def _curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Octaves of scales, falling in size, and the bits of all codes that plain rounding under them would take."""
        every = max(1, self.weight.numel() // _SAMPLE)
        sample, whole = self.weight[::every], self.weight.numel() / self.weight[::every].numel()
        peak = bool(sample.any())
        middle = float((self.weight / self.unit).square().mean().sqrt().clamp_min(2.0**-60).log2())
        sizes: list[float] = []
        for octave in (_OCTAVES + middle).tolist():
            if sizes and not peak:  # of zeros, whose sizes are asked before anything is made, all octaves give the same
                sizes.append(sizes[-1])
                continue
            codes = (sample / (self.unit * 2**octave)).round_().clamp_(-rans.TOP, rans.TOP).to(torch.int8)
            plain = float(self._bits(codes, self._tables_of_rows(2**octave)[::every], 0).sum())
            sizes.append((plain + _DEARER * self.paths * codes.numel()) * whole)
        return (_OCTAVES + middle).numpy(), np.minimum.accumulate(np.array(sizes))

    def _bits(self, codes: torch.Tensor, rows: torch.Tensor, beside: int, grids: torch.Tensor | None = None) -> torch.Tensor:
        """Bits of each row's codes, on their ``grids``, under the table that stands so far ``beside`` its own (rows,)."""
        table = torch.from_numpy(tables(rows + beside, self.columns)).T.int()
        if grids is not None:
            table += rans.TABLES * grids
        return self.costs.take(table.mul_(2 * rans.TOP + 1).add_(codes).add_(rans.TOP).long()).sum(1)

    def _tried(self, scales: dict[int, float], rooms: Sequence[int], paths: bool = True) -> list[_Trial]:
        """Codes under each scale, on ``paths`` where they follow them at all."""
        found, paths = [], paths and self.paths
        for (place, scale), codes in zip(scales.items(), self._codes(list(scales.values()), paths)):
            near = self._tables_of_rows(scale)
            grids = torch.from_numpy(shifted(codes.numpy())) if paths else None
            bits = torch.stack([self._bits(codes, near, beside, grids) for beside in _BESIDE])
            if bool((near == near[0]).all()):
                bits = bits.mean(1, keepdim=True).expand_as(bits)
            least, which = bits.min(0)
            rows = (near + torch.tensor(_BESIDE)[which]).to(torch.int16)
            # What a lane takes beside its numbers goes by the order of rows, as paths do: those of others are counted as the most that they may be.
            lane = _LANE if self.paths else _MOST_LANE
            taken = BESIDE - 4 + side_bytes(self.columns, rows, self.raised)
            taken += math.ceil(lane * rans.lanes(rooms[place]) + float(least.double().sum()) / 8)
            if paths and abs(taken / rooms[place] - 1) < _COUNTED:
                form = Coded(codes, 1.0, rows, self.columns, 1.0, torch.float32, self.raised, trellis=STATES)
                taken = len(form.body(rooms[place]))
            found.append(_Trial(codes, rows, scale, taken))
        return found

    def _codes(self, scales: Sequence[float], paths: bool) -> list[torch.Tensor]:
        """Codes int8 (rows, columns) under each scale, solved side by side: rows do not meet."""
        if self.factor is None or self.order is None:
            near = self._path if paths else self._nearest
            return [torch.cat([near(part, scale) for part in self._parts(scale)]) for scale in scales]
        one = laned(self.weight[:, self.order])
        most = max(1, slabs(one)[0].stop // len(one))
        return [codes for low in range(0, len(scales), most) for codes in self._solved(one, scales[low : low + most], paths)]

    def _solved(self, one: torch.Tensor, scales: Sequence[float], paths: bool) -> list[torch.Tensor]:
        """The same, of as many scales as are solved at once, to the bit as each alone."""
        assert self.factor is not None
        many = one.repeat(len(scales), 1)
        scale = torch.tensor(scales).repeat_interleave(len(one))
        below = (0, len(one) - len(self.weight))
        rows = torch.cat([torch.nn.functional.pad(self._tables_of_rows(each), below) for each in scales])
        found = []
        for part in self._slabs(many):
            rounding = (_Following if paths else _Rounding)(self, scale[part], rows[part], len(one))
            solve(many[part], self.factor, rounding.decide)
            found.append(rounding.codes.T)
        return [codes[: len(self.weight)] for codes in torch.cat(found).split(len(one))]

    def _parts(self, scale: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
        rows = self._tables_of_rows(scale)
        return [(self.weight[part], rows[part]) for part in self._slabs(self.weight)]

    def _slabs(self, weight: torch.Tensor) -> list[slice]:
        """Rows that are solved at a time; where codes follow paths these end where the slabs do."""
        found = slabs(weight)
        if not self.paths or len(found) == 1:
            return found
        count = max(1, found[0].stop // SEGMENT) * SEGMENT
        return [slice(low, low + count) for low in range(0, len(weight), count)]

    def _path(self, part: tuple[torch.Tensor, torch.Tensor], scale: float) -> torch.Tensor:
        weight, rows = part
        rounding = _Following(self, torch.full((len(weight),), scale), rows, len(weight))
        for column in range(weight.shape[1]):
            rounding.settle(column, weight[:, column])
        return rounding.codes.T

    def _nearest(self, part: tuple[torch.Tensor, torch.Tensor], scale: float) -> torch.Tensor:
        weight, rows = part
        reach = self.reaches[torch.from_numpy(tables(rows + _BESIDE[-1], self.columns)).T.long()].minimum(self.most)
        return torch.minimum((weight / (self.unit * scale)).round_(), reach).maximum(-reach).to(torch.int8)

    def _scaled(self, trial: _Trial, written: Callable[[float], float]) -> _Trial:
        """A trial with the best scale for its codes under the moment of inputs, since a step cuts off more than it adds, and what is lost where
        that is ``written``: all weights are then off alike, which adds up where inputs go together.
        """
        values = self._form(trial, 1.0, 1.0, torch.float32, torch.zeros_like(self.raised)).dense()
        if self.moment is None:
            along, across = (float((other * values).sum()) for other in (self.weight, values))
        else:
            moved = [(columns, values[:, columns] @ square) for columns, square in spans(self.moment)]
            along = float(torch.stack([(self.weight[:, columns] * part).sum() for columns, part in moved]).sum())
            across = float(torch.stack([(values[:, columns] * part).sum() for columns, part in moved]).sum())
        best = along / across if across > 0 and along > 0 else trial.scale
        error = max(self.energy - best * along, self.energy * _EXACT)
        more = (written(best) / best - 1) ** 2 * best * along / error if error > 0 else 0.0
        return replace(trial, best=best, lost=0.5 * math.log2(1 + more) * values.numel() / 8)

    def _finished(self, trial: _Trial, bits: float, dtype: torch.dtype) -> Coded:
        """The form, under the scale that is best for its codes."""
        step = float(np.float32(exact_scale(trial.best, dtype, self.raised) * self.size))
        return self._form(trial, step, bits, dtype, self.raised)

    def _form(self, trial: _Trial, scale: float, bits: float, dtype: torch.dtype, raised: torch.Tensor) -> Coded:
        return Coded(trial.codes, scale, trial.rows, self.columns, bits, dtype, raised, trellis=STATES * self.paths)


class _Rounding:
    """Decides codes column by column, within what each row's table can say."""

    def __init__(self, coding: _Coding, scale: torch.Tensor, rows: torch.Tensor, each: int):
        self.scale, self.unit, self.each = scale, coding.unit.tolist(), min(each, len(rows))
        self.order, self.most = [] if coding.order is None else coding.order.tolist(), coding.most.tolist()
        self.reaches, self.columns, self.rows = coding.reaches.float(), coding.columns.tolist(), rows.long()
        self.codes = torch.empty(len(self.unit), len(rows), dtype=torch.int8)
        self.known: dict[int, torch.Tensor] = {}

    def decide(self, k: int, corrected: torch.Tensor) -> torch.Tensor:
        column = self.order[k]
        exponent = self.columns[column]
        if exponent not in self.known:
            reach = self.reaches[(self.rows + _BESIDE[-1] - exponent).clamp(0, rans.TABLES - 1)]
            self.known[exponent] = reach.clamp(max=_THIRD) if exponent % 4 == 2 else reach
        reach, step = self.known[exponent], self.scale * self.unit[column]
        code = torch.div(corrected, step).round_()
        code = torch.minimum(code, reach, out=code).maximum(-reach)
        self.codes[column] = code
        return code.mul_(step)


class _Following(_Rounding):
    """Decides codes of a column together, as a path through the trellis; ``each`` weight's rows lie one below the other."""

    @override
    def decide(self, k: int, corrected: torch.Tensor) -> torch.Tensor:
        return self.settle(self.order[k], corrected)

    def settle(self, column: int, corrected: torch.Tensor) -> torch.Tensor:
        step = self.scale * self.unit[column]
        placed = torch.div(corrected, step).numpy().reshape(-1, self.each)
        # Bits are priced as of a row of nearly three times its deviation: under its own, what it took on of earlier columns' errors would be let go.
        own = (self.rows + _BESIDE[-1] - self.columns[column]).clamp_(0, rans.TABLES - 1).numpy().reshape(-1, self.each)
        codes, numbers = trellis.best(placed, own, self.most[column], _WIDER)
        self.codes[column] = torch.from_numpy(codes.reshape(-1))
        return torch.from_numpy(numbers.reshape(-1)) * step
