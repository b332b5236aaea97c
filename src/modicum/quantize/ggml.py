"""Ggml: blocks as llama.cpp stores them, their codes decided column by column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from typing_extensions import override

from modicum import forms
from modicum.core.blocks import Blocks
from modicum.core.errors import SettingError
from modicum.core.ggml import TYPES, fitting
from modicum.core.method import Change, Method, Need, Paper
from modicum.core.settings import param
from modicum.core.unit import Site, Stats
from modicum.forms.ggml_blocks import LAYOUTS
from modicum.forms.lift import on_dense
from modicum.numerics.drift import towards
from modicum.numerics.ggml import encode
from modicum.numerics.ggml_descent import descend
from modicum.numerics.ggml_held import Held
from modicum.numerics.solver import BlockFactor, Factor, laned, metric, slabs, solve
from modicum.quantize._factor import factored

# Bits a weight that are few: two starts are worth their time, and making up for what was lost before.
_FEW = 3.5
_NEEDS = {"gptq": frozenset({Need.COVARIANCE}), "weighed": frozenset({Need.NORMS})}
# The gradient's moment of a table is of few sequences, so its damping is large.
_DAMPING = 0.1


@dataclass(frozen=True, kw_only=True)
class Ggml(Method):
    """Round to blocks of a type that llama.cpp runs, column by column so that later columns absorb the error on the calibration inputs.

    A weight is ``scale · q - minimum`` with both for every 16 or 32 columns. In the types of 256 columns they are whole numbers under two steps for
    the block; in those without minima levels lie on both sides of zero. In ``iq2_s`` and ``iq3_s`` the sizes of 8 or 4 neighbouring columns are a
    point of llama.cpp's own list, so they are decided together. Scales and minima are searched for first, each column weighted by its
    inputs' energy; then codes are decided as in ``gptq``; then codes, whole numbers and steps move to their best in turn.

    Each row takes the better of two starts in types of up to 3 bits, which come near ``W + towards · W Δ H⁻¹`` as in ``gptq``.

    *Shapes:* weight (rows, columns), columns whole blocks of the type; covariance (columns, columns). *Needs and cost:* covariance and one
    factorization of it, then rows · columns² multiply-adds, and again for each sweep; ``rounding=weighed`` needs the energy of inputs alone and
    takes a hundred passes over the weight, as does ``nearest``, which needs no data. *Reduces to:* ``rounding=weighed`` where the covariance is
    diagonal and ``sweeps=0``, which is ``nearest`` where columns are alike. *Raises:* ``SettingError`` where blocks do not fill a row, and where it
    comes after a step that left no dense weight; ``ModelError`` where no damping makes the covariance positive definite. Weights whose inputs were
    not seen take ``rounding=felt``: as ``coded``, an embedding has the second moment of the output's gradient in what is looked up for a
    covariance; where gradients were not taken it is rounded to the nearest.

    Example:
        >>> import torch
        >>> Ggml(type="q4_k").code(torch.randn(8, 256), Stats(count=99, covariance=torch.eye(256)), torch.float32).nbytes
        1152

    """

    paper = Paper(
        "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", "2210.17323", 2022,
        "Frantar, Elias and Ashkboos, Saleh and Hoefler, Torsten and Alistarh, Dan",
    )  # fmt: skip
    needs = frozenset({Need.COVARIANCE, Need.NORMS})
    blockwise = True
    menu = tuple({"type": type} for type in ("iq2_s", "q2_k", "q3_k", "iq3_s", "iq4_xs", "q4_k", "iq4_nl", "q5_k", "q5_0", "q6_k", "q8_0"))
    runtime = "gguf"

    type: str = param(
        "q8_0", "how a block is stored: its bits, and what scales it has",
        dial=True, choices=(
            "q1_0", "q2_0", "iq2_s", "q2_k", "q3_k", "iq3_s", "iq4_xs", "q4_k", "iq4_nl", "q4_0", "q4_1", "q5_k", "q5_0", "q5_1", "q6_k", "q8_0",
        ),
    )  # fmt: skip
    rounding: str = param(
        "gptq", "column by column as inputs go together (gptq), or a table's as the output feels what is looked up (felt); to the nearest with "
        "columns weighted by their inputs (weighed), or alike (nearest)", choices=("gptq", "felt", "weighed", "nearest"),
    )  # fmt: skip
    damping: float = param(0.01, "share of the covariance's mean diagonal added to its diagonal", between=(0.0, 10.0))
    sweeps: int = param(
        3, "times that all codes and scales are moved to their best in turn; of more than 3 bits once while options are compared", between=(0, 100)
    )  # fmt: skip
    towards: float = param(0.5, "how far codes of up to 3 bits make up for what was lost before: 1 as well as they can", between=(0.0, 1.0))

    @override
    def wanted(self) -> frozenset[Need]:
        """Few levels ask how inputs drifted."""
        drifts = self.rounding == "gptq" and self.towards > 0 and TYPES[self.type].bits <= _FEW
        return _NEEDS.get(self.rounding, frozenset()) | (frozenset({Need.DRIFT}) if drifts else frozenset())

    def without_data(self) -> Method:
        """The stand-in for weights whose inputs were not seen."""
        return replace(self, rounding="felt" if self.feels else "nearest")

    @property
    @override
    def feels(self) -> bool:  # type: ignore[override]
        """Whether columns of tables make up for each other."""
        return self.rounding in ("gptq", "felt")

    @property
    @override
    def tables(self) -> bool:  # type: ignore[override]
        """What multiplies inputs is solved by how these go together."""
        return self.rounding == "felt"

    @property
    @override
    def by_rows(self) -> bool:
        """Blocks do not leave their row."""
        return True

    @override
    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, forms.Form]) -> Change:
        """Quantize every unit of the site."""
        own = lambda weight, seen: self.code(weight.float(), seen, weight.dtype)
        found = {u.name: on_dense(current[u.name], stats[u.name], own, self.key()) for u in site.units}
        return Change(forms=found, events=[f"{u.name}: {event}" for u in site.units for event in stats[u.name].events])

    def code(self, weight: torch.Tensor, stats: Stats, dtype: torch.dtype) -> forms.Ggml:
        """The form of float32 ``weight`` (rows, columns)."""
        columns = weight.shape[1]
        if columns % TYPES[self.type].columns:
            others = " or ".join(f"type={name}" for name in fitting(columns))
            raise SettingError(
                f"{self.key()} type={self.type}: rows must be whole blocks of {TYPES[self.type].columns} columns, have {columns}. "
                + (f"Choose {others}." if others else "Choose another method for them.")
            )
        made = {"gptq": self._solved, "felt": self._felt, "weighed": self._weighed, "nearest": self._nearest}[self.rounding]
        return forms.Ggml(made(weight, stats), self.type, (len(weight), columns), dtype)

    def _nearest(self, weight: torch.Tensor, stats: Stats) -> torch.Tensor:
        return encode(weight, self.type)

    def _weighed(self, weight: torch.Tensor, stats: Stats) -> torch.Tensor:
        return encode(weight, self.type, stats.square)

    def _felt(self, weight: torch.Tensor, stats: Stats) -> torch.Tensor:
        """Blocks of a table, or the nearest ones where it was not seen how the output feels it."""
        if stats.felt is None:
            return self._nearest(weight, stats)
        solver = replace(self, rounding="gptq", damping=_DAMPING, towards=0.0)
        return solver._solved(weight, replace(stats, covariance=stats.felt, drift=None))

    def _solved(self, weight: torch.Tensor, stats: Stats) -> torch.Tensor:
        """Blocks whose codes were decided column by column, slabs of rows one after the other."""
        points = LAYOUTS[self.type].points
        order, factor = factored(stats, self.damping, group=TYPES[self.type].columns, lot=1 if points is None else points.width)
        if stats.drift is not None and Need.DRIFT in self.wanted() and isinstance(factor, Factor):
            weight = towards(weight, stats.drift, order, factor, self.towards)
        return torch.cat([self._slab(laned(weight[rows]), stats, order, factor)[: len(weight[rows])] for rows in slabs(weight)])

    def _slab(self, weight: torch.Tensor, stats: Stats, order: torch.Tensor, factor: Factor | BlockFactor) -> torch.Tensor:
        """The better of two starts for each row where few levels are refined, else what one start gives."""
        assert stats.moment is not None
        moment = stats.moment.aligned(TYPES[self.type].columns) if isinstance(stats.moment, Blocks) else stats.moment
        own, left, columns = moment.diagonal(), torch.empty_like(factor.curvature), order.tolist()
        left[order] = factor.curvature
        # What a column is worth: between its energy, and what of it is left once others make up for it.
        starts = [(own.clamp_min(0) * left).sqrt(), left]
        few, settles = TYPES[self.type].bits <= _FEW, self.sweeps and not stats.ahead
        tried = []
        for importance in starts if few and settles else starts[:1]:
            held = Held(encode(weight, self.type, importance), self.type)
            self._decided(weight, held, columns, factor)
            rounds = self.sweeps if few or settles else min(self.sweeps, 1)
            loss = descend(weight, held, moment, factor.damping, rounds) if rounds else torch.zeros(len(weight))
            tried.append((loss, held.blocks()))
        best = torch.stack([loss for loss, _ in tried]).argmin(0)
        return torch.stack([blocks for _, blocks in tried])[best, torch.arange(len(weight))]

    def _decided(self, weight: torch.Tensor, held: Held, columns: list[int], factor: Factor | BlockFactor) -> None:
        """Give every column its codes, later ones absorbing the error: one by one, or as many as a lattice binds together."""
        points = held.layout.points
        if points is None:
            solve(weight[:, columns], factor, lambda k, wanted: torch.from_numpy(held.decide(columns[k], wanted.numpy())))
            return

        def prepare(low: int, high: int, best: torch.Tensor) -> None:
            held.together(slice(columns[low], columns[low] + high - low), best, metric(factor, low, high))

        solve(weight[:, columns], factor, lambda k, _: torch.from_numpy(held.value(columns[k])), span=points.width, prepare=prepare)
