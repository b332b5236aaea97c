"""Blocks: the span of blocks that changes the hidden state least is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modicum.core.method import Change, Need, Paper
from modicum.data.splits import Batch
from modicum.drop._family import Spanner
from modicum.models.model import Model
from modicum.sweep import Script
from modicum.sweep.spill import SpillPool


@dataclass(frozen=True, kw_only=True)
class Blocks(Spanner):
    """Leave out the contiguous span of blocks with the least cosine change between its input and output.

    The baseline for spans: ``argmin_i 1 - cos(x_i, x_{i+count})`` over the calibration tokens.

    *Shapes:* hidden states (tokens, width). *Needs and cost:* block outputs; one survey. *Reduces to:* nothing smaller; at least one
    block goes. *Raises:* ``ModelError`` where no span of that length can be dropped.

    Example:
        >>> str(Blocks(count=2))
        'blocks count=2'

    """

    paper = Paper("The Unreasonable Ineffectiveness of the Deeper Layers", "2403.17887", 2024, "Gromov, Andrey and others")
    needs = frozenset({Need.BLOCK_OUTPUTS})
    menu = ({},)

    def reshape(self, model: Model, script: Script, batches: Sequence[Batch], pool: SpillPool, seed: int = 0) -> Change:
        """Survey and drop."""
        span, why = self.span(model, script, batches, pool)
        return Change(dropped=span, events=[f"{span[0]} to {span[-1]}: dropped, {why}"])
