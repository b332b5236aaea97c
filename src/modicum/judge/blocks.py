"""How far the output of each block is from the original's, on a few tokens of what is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from modicum.data.splits import Batch, count_rows
from modicum.sweep import Script
from modicum.sweep.spill import SpillPool

# Sequences that are compared, and tokens of each.
_ROWS, _TOKENS = 8, 64


class BlockErrors:
    """The relative error of every block's output in other runs over what the ``original`` ran on: the mean over tokens of ‖ŷ − y‖ / ‖y‖.

    Each run's sweep is given what to call with a block's outputs once it is done (``on_block``): the original's ``keep``, and of others
    ``of`` their name. Of the first ``batches`` some tokens are compared, spread evenly, without padding; an output without an axis of tokens is
    compared row by row. So what is kept of a block is small, and the ``pool`` may move it to a file.
    """

    def __init__(self, script: Script, batches: Sequence[Batch], pool: SpillPool):
        self.script, self.pool = script, pool
        self.batches = _first(batches)
        self._kept: dict[str, dict[int, torch.Tensor]] = {}
        self._errors: dict[str, dict[str, float]] = {}

    def keep(self, block: str, outputs: Mapping[int, Any]) -> None:
        """Note what the original gives."""
        self._kept[block] = {index: some for index, some in self._some(block, outputs).items() if len(some)}
        self.pool.admit(self._kept[block])

    def of(self, run: str) -> Callable[[str, Mapping[int, Any]], None]:
        """What is to be called with the outputs of ``run``."""
        errors = self._errors.setdefault(run, {})

        def compare(block: str, outputs: Mapping[int, Any]) -> None:
            kept = self._kept.get(block, {})
            pairs = [(kept[index], some) for index, some in self._some(block, outputs).items() if index in kept]
            found = [_relative(left, right) for left, right in pairs if left.shape == right.shape]
            if found and bool(torch.isfinite(error := torch.cat(found).mean())):
                errors[block] = float(error)

        return compare

    def told(self) -> dict[str, Any]:
        """As a JSON value: ``rows`` in call order with the error in each run, None where it does not come by; and on how much that was found."""
        rows = [{"block": block, **{run: errors.get(block) for run, errors in self._errors.items()}} for block in self._kept]
        tokens = max((sum(map(len, kept.values())) for kept in self._kept.values()), default=0)
        return {"rows": rows, "sequences": sum(map(count_rows, self.batches)), "tokens": tokens} if rows else {}

    def _some(self, block: str, outputs: Mapping[int, Any]) -> dict[int, torch.Tensor]:
        """Some tokens (tokens, columns) of each output."""
        found = {}
        for index, output in outputs.items():
            value = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)), None)
            if index < len(self.batches) and value is not None and value.is_floating_point() and value.ndim > 1:
                found[index] = self._spread(block, self.batches[index], value)
        return found

    def _spread(self, block: str, batch: Batch, value: torch.Tensor) -> torch.Tensor:
        rows = value.flatten(0, 1) if value.ndim == 3 else value.flatten(1)
        places = torch.arange(len(rows))
        if value.ndim == 3 and (real := self._real(block, batch, value)) is not None:
            places = places[real.cpu()]
        most = _TOKENS * count_rows(batch)
        if len(places) > most:
            places = places[torch.linspace(0, len(places) - 1, most).long()]
        return rows[places.to(value.device)].cpu()

    def _real(self, block: str, batch: Batch, value: torch.Tensor) -> torch.Tensor | None:
        """Which tokens are no padding, by the first mask over tokens that a unit of the block obeys; None where all count."""
        for name, cover in self.script.masks.items():
            if name.startswith(f"{block}.") and (real := cover.real(batch, value.shape)) is not None and real[..., 0].ndim == 2:
                return real.expand(*value.shape[:2], 1).flatten()
        return None


def _first(batches: Sequence[Batch]) -> list[Batch]:
    """The first that have enough rows together."""
    found: list[Batch] = []
    for batch in batches:
        if sum(map(count_rows, found)) >= _ROWS:
            break
        found.append(batch)
    return found


def _relative(original: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Relative error of every token (tokens,)."""
    left, right = original.float(), other.float()
    return (right - left).norm(dim=-1) / left.norm(dim=-1).clamp_min(1e-30)
