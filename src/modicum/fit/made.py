"""The compressed model of a run while it is forms: what it answers, and what it loses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modicum.core.errors import ModicumError
from modicum.core.method import Change
from modicum.core.option import Option
from modicum.core.progress import ticked
from modicum.data.splits import Batch
from modicum.fit.dataless import Dataless
from modicum.fit.scene import Scene
from modicum.forms import Form
from modicum.judge.blocks import BlockErrors
from modicum.judge.judge import between
from modicum.judge.quality import RUINED, Quality, RuinedError, compare, streamed
from modicum.judge.texts import MOST_BYTES
from modicum.models.model import Model
from modicum.sweep.spill import SpillPool
from modicum.work.store import FormStore

OnBlock = Callable[[str, dict[int, Any]], None]


@dataclass(frozen=True)
class Made:
    """Forms by unit, what was changed of the structure, and the options that forms were made by."""

    scene: Scene
    change: Change
    forms: FormStore
    pool: SpillPool
    options: Mapping[str, Option]

    @property
    def dropped(self) -> frozenset[str]:
        """Blocks that are left out."""
        return frozenset(self.change.dropped)

    def outputs(
        self, batches: Sequence[Batch], model: Model | None = None, *, forms: Mapping[str, Form] | None = None, on_block: OnBlock | None = None
    ) -> Iterator[tuple[int, Any]]:  # fmt: skip
        """What it answers; ``model`` where not as the run computes, ``forms`` where others than its own."""
        scene = self.scene
        return streamed(
            model or scene.model, batches, scene.script, self.forms if forms is None else forms, biases=self.change.biases,
            dropped=self.dropped, pool=self.pool, on_block=on_block,
        )  # fmt: skip

    def _original(self, batches: Sequence[Batch], on_block: OnBlock | None = None) -> Iterator[tuple[int, Any]]:
        return streamed(self.scene.model.twin(), batches, self.scene.script, pool=self.pool, on_block=on_block)

    def quality(self, tick: Callable[[], None], blocks: BlockErrors | None = None) -> Quality:
        """What it loses on the test sequences; ``blocks`` sees where."""
        batches, scene = self.scene.data.test, self.scene
        seen = (None, None) if blocks is None else (blocks.keep, blocks.of("after"))
        original = ticked(self._original(batches, seen[0]), tick)
        return compare(original, self.outputs(batches, on_block=seen[1]), batches, scene.model.is_causal, scene.script.outputs)

    def by_block(self, blocks: BlockErrors, events: list[str], before: bool) -> dict[str, Any]:
        """How far each block is from the original's after ``quality`` was told, and ``before``: in the same plan without data."""
        plain = Dataless(self.scene.model, self.forms, self.options, self.change.forms)
        if before and plain.options and self.scene.model.dense_bytes <= MOST_BYTES:
            try:
                for _ in self.outputs(blocks.batches, forms=plain, on_block=blocks.of("before")):
                    pass
            except ModicumError as error:
                events.append(f"blocks: what they lose without data is not told ({error})")
        return blocks.told()

    def lost(self, count: int) -> list[float]:
        """What it loses on the first rows that choices are judged by."""
        scene = self.scene
        batches = between(scene.data.validation, 0, count, scene.script.whole)
        try:
            return compare(self._original(batches), self.outputs(batches), batches, False, scene.script.outputs).by_row(batches)
        except RuinedError:
            return [RUINED] * count
