"""Training in a random subspace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.adapt._family import Adapter
from modicum.core.method import Paper
from modicum.core.parametrization import Start, State, Step
from modicum.core.settings import param
from modicum.forms import Projected, Shared, Sum
from modicum.forms.projected import drawing, projected

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Subspace(Adapter):
    """All weights move together in one random subspace: ``size`` numbers are trained for the whole model.

    ``W + scale · P θ`` with θ shared by all units and P drawn for each from a seed. The smallest size that reaches a share of what full training
    does is the intrinsic dimension of the task (Li et al. 2018); with ``scales=trained`` that of fine-tuning (Aghajanyan et al. 2020).

    *Shapes:* numbers (1, size), shared; scale (1,) of each weight.

    *Needs and cost:* no statistics; size trained numbers, and one per weight with ``scales=trained``. A file holds them and a seed. Per weight two
    Walsh-Hadamard transforms, n log n for n entries, or a product with a matrix of n · size, which is kept while training.

    *Reduces to:* the base with all numbers at zero, where training begins.

    *Raises:* nothing of its own.

    *Differences from the paper:* random numbers are uniform and from a counter, the same in every version of every library; columns of P are
    orthogonal in the mean only.

    Example:
        >>> str(Subspace(size=200))
        'subspace size=200'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Measuring the Intrinsic Dimension of Objective Landscapes",
        arxiv="1804.08838",
        year=2018,
        authors="Chunyuan Li and Heerad Farkhoor and Rosanne Liu and Jason Yosinski",
    )
    rate: ClassVar[float] = 3e-3

    size: int = param(1000, "numbers that are trained over all weights", between=(1, 10**8), dial=True)
    projection: str = param("fastfood", "how they are spread over the entries", choices=("fastfood", "dense"))
    scales: str = param("one", "whether each weight has a trained factor", choices=("one", "trained"))

    @override
    def common(self, shapes: Mapping[str, tuple[int, int]], chance: torch.Generator, seed: int) -> State | None:
        """The numbers, zeros."""
        return State({"numbers": torch.zeros(1, self.size)})

    @override
    def begin(self, start: Start) -> State:
        """The unit's projection, and its scale."""
        rows, columns = start.shape
        frozen = {**drawing(start.seed, self.projection, rows * columns, self.size), "seed": torch.tensor(start.seed)}
        scale = {"scale": torch.ones(1)}
        if self.scales == "trained":
            return State(scale, frozen, start.common, start.base)
        return State({}, {**frozen, **scale}, start.common, start.base)

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The base and what the numbers come to here."""
        assert base is not None
        drawn = {name: state.frozen[name] for name in ("matrix", "signs", "order", "lengths") if name in state.frozen}
        return base + projected(state["numbers"].reshape(-1), state["scale"], drawn, (base.shape[0], base.shape[1]))

    @override
    def form(self, state: State) -> Form:
        """Shared numbers under a seed."""
        assert state.base is not None
        numbers = Shared(f"{self}: numbers", (1, self.size), torch.float32)
        return Sum((state.base, Projected(numbers, state["scale"].detach(), int(state["seed"]), self.projection, state.base.shape)))
