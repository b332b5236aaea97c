"""What may be treated (``Unit``), what one choice binds (``Site``), and what was measured (``Stats``)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from modicum.core.blocks import Blocks
    from modicum.core.slopes import Slopes

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
Kind = Literal[
    "linear", "conv1d", "convolution", "transposed convolution", "embedding", "expert", "recurrent", "packed", "looked up", "parameter"
]
# Kinds of weights that their module does not multiply as a whole when it is called: several may belong to one module.
_DIRECT = {"recurrent", "packed", "looked up", "parameter"}
SiteKind = Literal["unit", "fused", "tied", "experts", "cut", "block", "span", "model"]


def unnumbered(name: str) -> str:
    """A name without the numbers in it."""
    return _NUMBER.sub("#", name)


@dataclass(frozen=True)
class Unit:
    """A weight a method may treat, seen as a matrix of outputs × inputs whatever its storage.

    ``name`` is the parameter's name in the module, followed by ``[e]`` for expert ``e`` of a stack. ``shape`` is (rows, columns) of the
    matrix view: a linear's (out, in), a convolution's (out, in · kernel), an embedding's (entries, width). ``groups`` is a convolution's;
    with more than one, columns see different inputs per row and only data-free options apply. ``transposed`` says that storage
    is (in, out, ...), as in GPT-2's ``Conv1D``, transposed convolutions and some expert stacks. A ``direct`` one is used by its module in
    its own way (gates of a recurrent layer, packed projections of an attention, a parameter that ``forward`` multiplies). Zeros of a
    ``pruned`` one stay zero.
    """

    name: str
    parameter: str
    module: str
    kind: Kind
    shape: tuple[int, int]
    stored_shape: tuple[int, ...]
    dtype: torch.dtype
    expert: int | None = None
    transposed: bool = False
    groups: int = 1
    aliases: tuple[str, ...] = ()
    pruned: bool = False

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]

    @property
    def dense_bytes(self) -> int:
        """Bytes as the checkpoint stores it."""
        return self.size * self.dtype.itemsize

    @property
    def direct(self) -> bool:
        """Whether no call of a module stands for its product."""
        return self.kind in _DIRECT

    @property
    def likeness(self) -> str:
        """What it has in common with the units that have its place in other blocks; all experts are alike."""
        return "experts" if self.kind == "expert" else unnumbered(self.name)

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides of the stored weight where its matrix is those laid out row by row, the first one its rows; else the matrix's own."""
        own = self.stored_shape[1:] if self.expert is not None else self.stored_shape
        return own if not self.transposed and len(own) > 1 and own[0] == self.shape[0] else self.shape

    def matrix(self, stored: torch.Tensor) -> torch.Tensor:
        """Matrix view (rows, columns) of the stored parameter (a whole stack for an expert)."""
        if self.expert is not None:
            stored = stored[self.expert]
        if self.transposed:
            return stored.reshape(self.shape[1], self.shape[0]).T
        return stored.reshape(self.shape)

    def stored(self, matrix: torch.Tensor) -> torch.Tensor:
        """A matrix back in its storage layout (one expert's slice for an expert)."""
        shape = self.stored_shape[1:] if self.expert is not None else self.stored_shape
        return (matrix.T if self.transposed else matrix).reshape(shape).contiguous()


@dataclass(frozen=True)
class Axis:
    """How a coupled cut touches one unit: ``groups[g]`` are the rows (or columns) of that unit that vanish with group ``g``."""

    unit: str
    side: Literal["rows", "columns"]
    groups: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Site:
    """What one choice binds: a unit, a fused or tied set, the experts of a model, a coupled cut, or a span of blocks."""

    name: str
    kind: SiteKind
    units: tuple[Unit, ...]
    axes: tuple[Axis, ...] = ()
    blocks: tuple[str, ...] = ()
    data_free: str = ""

    @property
    def size(self) -> int:
        """Number of weights bound."""
        return sum(unit.size for unit in self.units)


@dataclass(frozen=True)
class Routed:
    """What a router sent to one expert: inputs of its last product (met, columns), the rows of the block's output that the products are added to
    (met,), and their weights there (met,).
    """

    inputs: torch.Tensor
    tokens: torch.Tensor
    weights: torch.Tensor


@dataclass
class Stats:
    """What one sweep measured of a unit's inputs (columns of its matrix view), and of the gradient of its outputs.

    ``count`` tokens (or patches); ``total`` and ``square`` (columns,) sums of x and x²; ``covariance`` (columns, columns) sum of x xᵀ in
    float32, or ``blocks`` along its diagonal where the whole does not fit; ``drift`` (columns, columns) sum of (y - x) xᵀ with the original model's
    inputs y in place of the compressed one's x, where both ran side by side; ``inputs`` a list of (tokens, columns) where a method asked for
    them; ``frequency`` (rows,) how often an embedding's entry was looked up, for an expert (1,) the tokens it met itself; ``routed`` what its
    last product met, micro-batch by micro-batch, and where it went; ``raised`` (rows,) in quarters of an octave the steps that suit how much the
    output feels each row (``numerics/coding.py``); ``felt`` (columns, columns) of a table, the second moment of the output's gradient in what is
    looked up there; ``coupled`` (rows, rows) how the output feels rows together, the covariance of the gradients of its outputs; ``slopes`` what
    single sequences' gradients say of each weight; ``reference`` (rows, columns) the weight before any step. ``cache``
    holds what methods derive from one covariance and share (a factorization); ``ahead`` are methods that will be asked of the same weight:
    one may work out several, and then ``made`` has the weight and what the others gave; ``beside`` are other weights (rows, columns) with these
    inputs that will be asked for next in the same way, and their statistics, whose ``made`` takes what was worked out with this one;
    ``events`` is where a method says what it had to do beyond the ordinary.
    """

    count: int = 0
    total: torch.Tensor | None = None
    square: torch.Tensor | None = None
    covariance: torch.Tensor | None = None
    blocks: Blocks | None = None
    drift: torch.Tensor | None = None
    inputs: list[torch.Tensor] | None = None
    frequency: torch.Tensor | None = None
    routed: list[Routed] | None = None
    raised: torch.Tensor | None = None
    felt: torch.Tensor | None = None
    coupled: torch.Tensor | None = None
    slopes: Slopes | None = None
    reference: torch.Tensor | None = None
    site_seed: int = 0
    cache: dict = field(default_factory=dict)
    ahead: tuple[Any, ...] = ()
    made: dict[Any, tuple[torch.Tensor, Any]] = field(default_factory=dict)
    beside: tuple[tuple[torch.Tensor, Stats], ...] = ()
    events: list[str] = field(default_factory=list)

    @property
    def mean(self) -> torch.Tensor:
        """Mean input (columns,)."""
        assert self.total is not None
        return self.total / max(self.count, 1)

    @property
    def norm(self) -> torch.Tensor:
        """Euclidean norm of each input column over all tokens (columns,)."""
        assert self.square is not None
        return self.square.sqrt()

    @property
    def variance(self) -> torch.Tensor:
        """Variance of each input column (columns,)."""
        assert self.square is not None
        return (self.square / max(self.count, 1) - self.mean.square()).clamp_min(0)

    @property
    def moment(self) -> torch.Tensor | Blocks | None:
        """The covariance, whole or in blocks; None where neither was measured."""
        return self.blocks if self.covariance is None else self.covariance

    def kept(self, columns: torch.Tensor) -> Stats:
        """Statistics of the inputs that remain after a cut to ``columns`` (a long tensor)."""
        pick = lambda value: None if value is None else value[columns]
        return Stats(
            count=self.count, total=pick(self.total), square=pick(self.square),
            covariance=None if self.covariance is None else self.covariance[columns][:, columns],
            blocks=None if self.blocks is None else self.blocks.kept(columns),
            inputs=None if self.inputs is None else [x[:, columns] for x in self.inputs],
            frequency=self.frequency, raised=self.raised,
            felt=None if self.felt is None else self.felt[columns][:, columns], site_seed=self.site_seed, events=self.events,
            slopes=None if self.slopes is None else self.slopes.columns(columns),
        )  # fmt: skip

    def finished(self, unit: Unit) -> None:
        """Let go of what was derived for a unit, unless others share it: an expert has a covariance of its own, except where it starved."""
        if unit.kind == "expert" and not any(event.startswith("starved") for event in self.events):
            self.cache.clear()

    def generator(self) -> torch.Generator:
        """The source of chance for this site: depends on the run's seed and the unit's name alone."""
        import torch

        return torch.Generator().manual_seed(self.site_seed)
