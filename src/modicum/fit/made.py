"""The compressed model of a run while it is forms: what it answers, and what it loses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from modicum.core.method import Change
from modicum.core.progress import ticked
from modicum.data.splits import Batch
from modicum.fit.scene import Scene
from modicum.judge.judge import between
from modicum.judge.quality import RUINED, Quality, RuinedError, compare, streamed
from modicum.models.model import Model
from modicum.sweep.spill import SpillPool
from modicum.work.store import FormStore


@dataclass(frozen=True)
class Made:
    """Forms by unit, and what was changed of the structure."""

    scene: Scene
    change: Change
    forms: FormStore
    pool: SpillPool

    @property
    def dropped(self) -> frozenset[str]:
        """Blocks that are left out."""
        return frozenset(self.change.dropped)

    def outputs(self, batches: Sequence[Batch], model: Model | None = None) -> Iterator[tuple[int, Any]]:
        """What it answers; ``model`` where not as the run computes."""
        scene = self.scene
        return streamed(
            model or scene.model, batches, scene.script, self.forms, biases=self.change.biases, dropped=self.dropped, pool=self.pool
        )  # fmt: skip

    def _original(self, batches: Sequence[Batch]) -> Iterator[tuple[int, Any]]:
        return streamed(self.scene.model.twin(), batches, self.scene.script, pool=self.pool)

    def quality(self, tick: Callable[[], None]) -> Quality:
        """What it loses on the test sequences."""
        batches, scene = self.scene.data.test, self.scene
        original = ticked(self._original(batches), tick)
        return compare(original, self.outputs(batches), batches, scene.model.is_causal, scene.script.outputs)

    def lost(self, count: int) -> list[float]:
        """What it loses on the first rows that choices are judged by."""
        scene = self.scene
        batches = between(scene.data.validation, 0, count, scene.script.whole)
        try:
            return compare(self._original(batches), self.outputs(batches), batches, False, scene.script.outputs).by_row(batches)
        except RuinedError:
            return [RUINED] * count
