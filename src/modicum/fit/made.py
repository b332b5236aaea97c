"""The compressed model of a run while it is forms: what it answers, and what it loses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from modicum.core.errors import ModicumError
from modicum.core.method import Change
from modicum.core.option import Option
from modicum.core.progress import ticked
from modicum.data.splits import Batch
from modicum.export import Target
from modicum.fit.dataless import Dataless
from modicum.fit.scene import Scene
from modicum.forms import Form
from modicum.judge.blocks import BlockErrors
from modicum.judge.judge import between
from modicum.judge.quality import RUINED, Quality, RuinedError, compare, streamed
from modicum.judge.texts import MOST_BYTES
from modicum.measure.moving import with_values
from modicum.models.model import Model
from modicum.sweep.spill import SpillPool

OnBlock = Callable[[str, dict[int, Any]], None]


def changed(scene: Scene, values: Mapping[str, torch.Tensor]) -> Model:
    """The original with other values of some parameters, in the dtype that it computes in."""
    base = scene.target.model
    return scene.subject.compute.of(with_values(base.stored, values)) if values else base


class Over(Mapping[str, Form]):
    """Forms in memory over others that are read when they are asked for."""

    def __init__(self, over: Mapping[str, Form], beneath: Mapping[str, Form]):
        self.over, self.beneath = over, beneath

    def __getitem__(self, name: str) -> Form:
        return self.over[name] if name in self.over else self.beneath[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.beneath)

    def __len__(self) -> int:
        return len(self.beneath)


@dataclass(frozen=True)
class Made:
    """Forms by unit, what was changed of the structure, and the options that forms were made by."""

    scene: Scene
    change: Change
    forms: Mapping[str, Form]
    pool: SpillPool
    options: Mapping[str, Option]
    values: Mapping[str, torch.Tensor] = field(default_factory=dict)  # of parameters that are others than the original's, forms apart

    def with_healed(self, forms: Mapping[str, Form], vectors: Mapping[str, torch.Tensor]) -> Made:
        """The same with other forms of some units, and other values of vectors, of which some are biases that compression added."""
        biases = {module: vectors.get(f"{module}.bias", bias) for module, bias in self.change.biases.items()}
        values = {name: value for name, value in vectors.items() if name.rpartition(".")[0] not in biases or not name.endswith(".bias")}
        return replace(
            self, forms=Over(forms, self.forms), values={**self.values, **values}, change=replace(self.change, biases=biases)
        )  # fmt: skip

    @cached_property
    def model(self) -> Model:
        """The original, but for parameters that healing changed: what stands where there are no forms."""
        return changed(self.scene, self.values)

    def dense(self) -> dict[str, torch.Tensor]:
        """Every parameter that is another than the original's, as it is stored dense."""
        found = dict(self.values)
        for name in self.forms:
            unit = self.scene.model.units[name]
            stored = unit.stored(self.forms[name].dense())
            if unit.expert is None:
                found[unit.parameter] = stored
            else:
                found.setdefault(unit.parameter, self.model.weights.read(unit.parameter).clone())[unit.expert] = stored
        return found

    @cached_property
    def target(self) -> Target:
        """What it is written by."""
        return self.scene.target.over(self.model) if self.values else self.scene.target

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
            model or self.model, batches, scene.script, self.forms if forms is None else forms, biases=self.change.biases,
            dropped=self.dropped, pool=self.pool, on_block=on_block,
        )  # fmt: skip

    @property
    def original(self) -> Model:
        """What it is held against."""
        return self.scene.subject.original

    def _answered(self, model: Model, batches: Sequence[Batch], on_block: OnBlock | None = None) -> Iterator[tuple[int, Any]]:
        return streamed(model.twin(), batches, self.scene.script, pool=self.pool, on_block=on_block)

    def quality(self, tick: Callable[[], None], blocks: BlockErrors | None = None) -> Quality:
        """What it loses on the test sequences; ``blocks`` sees where."""
        batches, scene = self.scene.data.test, self.scene
        keep, after = (None, None) if blocks is None else (blocks.keep, blocks.of("after"))
        if blocks is not None and scene.subject.given is not None:  # whose blocks answer in another basis
            for _ in self._answered(scene.model, blocks.batches, keep):
                pass
            keep = None
        original = ticked(self._answered(self.original, batches, keep), tick)
        return compare(original, self.outputs(batches, on_block=after), batches, scene.model.is_causal, scene.script.outputs)

    def by_block(self, blocks: BlockErrors, events: list[str], before: bool) -> dict[str, Any]:
        """How far each block is from the original's after ``quality`` was told, and ``before``: in the same plan without data."""
        plain = Dataless(self.scene.model, self.forms, self.options, self.change.forms)
        if before and plain.options and self.scene.model.dense_bytes <= MOST_BYTES:
            try:
                for _ in self.outputs(blocks.batches, self.scene.model, forms=plain, on_block=blocks.of("before")):
                    pass
            except ModicumError as error:
                events.append(f"blocks: what they lose without data is not told ({error})")
        return blocks.told()

    def lost(self, count: int) -> list[float]:
        """What its forms lose on the first rows that choices are judged by: beside what they were put into, as plain options are measured."""
        scene = self.scene
        batches = between(scene.data.validation, 0, count, scene.script.whole)
        try:
            return compare(self._answered(scene.target.model, batches), self.outputs(batches), batches, False, scene.script.outputs).by_row(
                batches
            )
        except RuinedError:
            return [RUINED] * count
