"""WaterSIC: columns that matter less take coarser steps, and an entropy coder the fewer bits that leaves them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Change, Method, Need, Paper
from modicum.core.settings import param
from modicum.core.unit import Site, Stats
from modicum.forms import Form
from modicum.forms.lift import on_dense
from modicum.quantize._aim import aimed
from modicum.quantize._stream import solved, with_those_ahead
from modicum.quantize.coded import Coded

# Weights of a matrix that is worth coding.
_SMALLEST = 4096


@dataclass(frozen=True, kw_only=True)
class Watersic(Method):
    """Round column by column as ``gptq`` does, under steps that fall with what a column is worth, and code the whole numbers near their entropy.

    The stream has the size that was asked for. Steps are ``∝ 1 / √D`` with the conditional variances D of the inputs' covariance ``H = M D Mᵀ``
    (see ``numerics/coding.py``): the share of the error that each column is left with is then the same. The damping is at
    least that error in an input of no energy. Where gradients of the output were taken,
    steps of rows fall with the fourth root of how much the output feels each. Up to four bits the codes of a column are the best path through a
    trellis of two grids (see ``numerics/trellis.py``), which takes 0.16 to 0.2 bits less for the same error. Codes come near
    ``W + towards · W Δ H⁻¹`` as those of ``gptq`` do at few bits, where Δ sums ``(y - x) xᵀ`` of the original's inputs y: a layer makes up for a part
    of what was lost before it.

    *Shapes:* weight (rows, columns), covariance (columns, columns). *Needs and cost:* covariance, and the original beside the compressed model; the
    factorization that ``gptq`` has too, and two to four solves; with ``paths`` some four seconds for a million weights. *Reduces to:* ``coded``
    where the covariance is a multiple of the identity and no inputs drifted. *Raises:* ``ModelError`` where no damping makes the covariance positive
    definite. Weights whose inputs were not seen take ``coded`` at the same rate.

    *Differences from the paper:* steps are octaves and one and a half times those; codes are coded under tables of Gaussians by the deviation of
    their row and the step of their column, in exactly the bytes asked for; one scale for the matrix is put right at the end, not one for each
    column and row; half of the drift of inputs is made up for at all rates.

    Example:
        >>> import torch
        >>> stats = Stats(count=99, covariance=torch.eye(64))
        >>> Watersic(rate=2.0).code(torch.randn(64, 64), stats, torch.float32).nbytes
        1043

    """

    paper = Paper(
        "WaterSIC: information-theoretically (near) optimal linear layer quantization", "2603.04956", 2026,
        "Lifar, Egor and Savkin, Semyon and Ordentlich, Or and Polyanskiy, Yury",
    )  # fmt: skip
    needs = frozenset({Need.COVARIANCE})
    blockwise = True
    feels = True
    known_gaps: ClassVar[dict[str, str]] = {"permuted rows permute the answer": "on a path a code decides on which grid those below it are"}
    menu = tuple({"rate": rate} for rate in (1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 3.5, 4.0, 5.0))

    rate: float = param(3.0, "bits per weight, all that is stored included", between=(1.0, 6.0), dial=True)
    paths: bool = param(True, "up to four bits, take of each column the best path through a trellis of two grids")
    towards: float = param(0.5, "how far codes make up for what was lost before: 1 as well as they can", between=(0.0, 1.0))
    damping: float = param(0.0005, "share of the covariance's mean diagonal added to its diagonal at the least", between=(0.0, 10.0))

    @override
    def wanted(self) -> frozenset[Need]:
        """Codes ask how inputs drifted."""
        return self.needs | (frozenset({Need.DRIFT}) if self.towards else frozenset())

    def without_data(self) -> Coded:
        """The stand-in for weights whose inputs were not seen."""
        return Coded(rate=self.rate, paths=self.paths)

    def blueprint(self) -> Method:
        """A method whose form has the same bytes: for sizes before any work."""
        return Coded(rate=self.rate, paths=False)

    @override
    def saves(self, site: Site) -> bool:
        """What stands beside the codes of a small weight takes more than coding them saves."""
        return all(unit.size >= _SMALLEST for unit in site.units)

    @override
    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, Form]) -> Change:
        """Code every unit of the site."""
        forms = {}
        for unit in site.units:
            own = replace(self, paths=False) if unit.pruned else self  # on a path the codes after one that is made zero would change
            code = lambda weight, seen, own=own: own.code(weight.float(), seen, weight.dtype)
            forms[unit.name] = on_dense(current[unit.name], stats[unit.name], code, self.key())
        return Change(forms=forms, events=[f"{u.name}: {event}" for u in site.units for event in stats[u.name].events])

    def code(self, weight: torch.Tensor, stats: Stats, dtype: torch.dtype) -> Form:
        """The form of float32 ``weight`` (rows, columns); of those to come of the same weight it is made with them, solved side by side."""
        alike = lambda other: isinstance(other, Watersic) and (other.damping, other.paths) == (self.damping, self.paths)
        weight = aimed(self, weight, stats)
        make = lambda steps: solved(steps, weight, stats, dtype, self.damping, stats.raised, self.paths)
        return with_those_ahead(self, weight, stats, alike, make)
