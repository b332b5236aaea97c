"""What a rehearsal saw: the order of calls, who shares inputs, and what cannot be treated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import torch

from modicum.core.method import Need
from modicum.core.slopes import Slopes
from modicum.core.unit import Unit
from modicum.data.splits import Batch, chance_of, count_tokens, one_row
from modicum.sweep.cover import Cover
from modicum.sweep.important import Important
from modicum.sweep.learnt import Learnt
from modicum.sweep.outputs import Outputs
from modicum.sweep.work import Work

# Why the inputs of a weight that its module uses in its own way were not seen, by kind.
DIRECT = {"recurrent": "recurrent", "packed": "packed attention", "looked up": "embedding"}


@dataclass(frozen=True)
class StackUse:
    """How a module uses its stacks: attributes in the order of their products, and which are stored transposed."""

    module: str
    attributes: tuple[str, ...]
    transposed: dict[str, bool]


@dataclass
class Script:
    """What a rehearsal saw.

    ``stages``: unit names in call order, grouped where units of one block got the very same input, unchanged, and take the same rows of it.
    ``block_of`` each unit's block. ``opaque``: units whose module gives something else than the product of its input and its weight.
    ``inside``: by module the units whose inputs `sweep.within` tells, grouped where they share them, in the order of their use.
    ``repeated``: those of them that a forward calls several times, whose inputs are summed over all calls (`sweep.repeated`).
    ``droppable``: blocks whose output has the shape of their input and nothing beside it; ``tuples``: those that wrap it in a tuple; ``fixed``: those
    that hold a weight which is to stay as it is.
    ``read``: modules whose weight is read from outside their own forward, if only for its dtype. ``carried``: attributes that forwards write, by
    module: each micro-batch has its own. ``whole``: a single row of a batch cannot run. ``outputs``: what of the output is
    judged; ``learnt``: which tokens masks cover; ``draws``: whether a forward draws random numbers; ``in_turn``: whether forwards share state,
    so that none may begin before the one before it has ended.
    ``together``: columns whose covariance is taken together, of units whose whole one does not fit (``fit.memory``).
    ``raised``: steps of rows by unit, that suit how much the output feels each; ``felt``: by table, how much it feels what is looked up there, the
    second moment of its gradient (columns, columns) (``measure.felt``); ``feels``: whether that is to be known.
    ``slopes``: gradients by weight, where a method asks (``measure.slopes``).
    ``important``: how much tokens of calibration count, where they do not count alike (``measure.importance``).
    ``sent``: whether experts that met few tokens are measured on others.
    ``folded``: units whose input has other axes than rows, tokens and columns.
    ``met``: values that a unit reads and gives for one row, which is one of ``example``; ``work``: multiply-adds of it, None where nothing was
    run with values.
    """

    stages: list[tuple[str, ...]] = field(default_factory=list)
    block_of: dict[str, str] = field(default_factory=dict)
    blocks: list[str] = field(default_factory=list)
    reused: set[str] = field(default_factory=set)
    uncalled: set[str] = field(default_factory=set)
    opaque: set[str] = field(default_factory=set)
    stacks: dict[str, StackUse] = field(default_factory=dict)
    inside: dict[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)
    droppable: set[str] = field(default_factory=set)
    fixed: set[str] = field(default_factory=set)
    tuples: set[str] = field(default_factory=set)
    read: set[str] = field(default_factory=set)
    carried: dict[str, frozenset[str]] = field(default_factory=dict)
    whole: bool = False
    outputs: Outputs = field(default_factory=Outputs)
    learnt: Learnt = field(default_factory=Learnt)
    draws: bool = False
    in_turn: bool = False
    together: dict[str, int] = field(default_factory=dict)
    raised: dict[str, torch.Tensor] = field(default_factory=dict)
    felt: dict[str, torch.Tensor] = field(default_factory=dict)
    feels: bool = False
    slopes: dict[str, Slopes] = field(default_factory=dict)
    sent: bool = False
    important: Important = field(default_factory=Important)
    met: dict[str, int] = field(default_factory=dict)
    folded: set[str] = field(default_factory=set)
    work: Work | None = None

    @property
    def masks(self) -> dict[str, Cover]:
        """By module the mask that its input's tokens belong to."""
        return self.learnt.covers

    def may_go(self, blocks: Iterable[str]) -> bool:
        """Whether all of these blocks can be left out, and hold nothing that stays."""
        return set(blocks) <= self.droppable - self.fixed

    def seeds(self, batches: Sequence[Batch]) -> list[int] | None:
        """Seeds of what forwards draw on each batch, where they draw at all: the same for the original and for what becomes of it."""
        return [chance_of(batch) for batch in batches] if self.draws else None

    def example(self, batch: Batch) -> Batch:
        """What of a batch is enough to try something on: one row, or all of it where one row cannot run."""
        return batch if self.whole else one_row(batch)

    def count_tokens(self, batches: Sequence[Batch]) -> int:
        """Tokens of the batches that are no padding; rows where a batch has no token ids."""
        covers = [*self.masks.values(), *(part.cover for part in self.outputs.parts or () if part.cover is not None)]
        return sum(_real_tokens(batch, covers) for batch in batches)

    def by_weight(self, unit: Unit) -> bool:
        """Whether errors are felt through the weight itself, for what its module makes of it is not the product of an input and it."""
        return unit.kind != "expert" and unit.name in self.uncalled | self.opaque | self.within

    @property
    def within(self) -> set[str]:
        """Units whose module uses them in its own way, on inputs that are known."""
        return {name for stages in self.inside.values() for stage in stages for name in stage}

    def stage_of(self, unit: str) -> tuple[str, ...]:
        """The stage a unit belongs to; a unit the rehearsal did not reach is a stage of its own."""
        return next((stage for stage in self.stages if unit in stage), (unit,))

    def asked(self, unit: str, wanted: Mapping[str, Set[Need]] | None, every: Set[Need]) -> frozenset[Need]:
        """What is ``wanted`` of the inputs of a unit, by those that share them; ``every`` need where that is not told."""
        inside = (name for stages in self.inside.values() for stage in stages if unit in stage for name in stage)
        sharing = {*self.stage_of(unit), *inside}
        return frozenset(every) if wanted is None else frozenset().union(*(wanted.get(name, ()) for name in sharing))

    @staticmethod
    def home(unit: str, blocks: Iterable[str]) -> str:
        """The block a unit's name lies in, or an empty string."""
        return next((block for block in blocks if unit.startswith(f"{block}.")), "")

    def data_free(self, unit: Unit) -> str:
        """Why a unit can only take options that need no data, or an empty string; the reasons are a closed set."""
        if unit.kind == "embedding":
            return "tied" if unit.aliases else "embedding"
        if unit.aliases:
            return "tied"
        if unit.name in self.within:
            return ""
        if unit.direct:
            return DIRECT.get(unit.kind, "used directly")
        if unit.name in self.reused:
            return "reused"
        if unit.name in self.uncalled:
            return "used directly" if unit.module in self.read else "never called"
        if unit.name in self.opaque:
            return "own forward"
        return "grouped convolution" if unit.groups > 1 else ""


def _real_tokens(batch: Batch, covers: Sequence[Cover]) -> int:
    """Tokens that a mask over ids, (rows, tokens), leaves; all of them where none is over them."""
    ids = batch.get("input_ids") if isinstance(batch, dict) else None
    if ids is not None and ids.ndim == 2:
        for cover in covers:
            if (real := replace(cover, axes=(0, 1)).real(batch, ids.shape)) is not None:
                return int(real.sum())
    return count_tokens([batch])
