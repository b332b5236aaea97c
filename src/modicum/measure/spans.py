"""Which spans of blocks are worth leaving out, and what each does to the output: the real divergence, one span changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from modicum.core.errors import UnsuitableError
from modicum.data.splits import Batch
from modicum.drop._family import Spanner
from modicum.drop._spans import every_change
from modicum.judge.quality import compare, streamed
from modicum.models.model import Model
from modicum.sweep import Script
from modicum.sweep.spill import SpillPool
from modicum.table.findings import Structural
from modicum.table.sizing import SPAN_LENGTHS


def measure_spans(
    model: Model, script: Script, steps: Sequence[Spanner], calibration: Sequence[Batch], judged: Sequence[Batch], pool: SpillPool, seed: int,
    known: dict[str, Structural] | None = None, done: Callable[[dict[str, Structural]], None] = lambda found: None,
    hopeless: Callable[[float], bool] = lambda least: False,
) -> dict[str, Structural]:  # fmt: skip
    """For each method and length the span of least cosine change, with the mean KL per token that leaving it out costs on ``judged``.

    Lengths go up to a third of the blocks that can be dropped. A method that cannot stand in for a span (``UnsuitableError``) is left out for
    it. ``known`` are spans measured before an interruption; ``done`` is shown what is measured after each. Where the least that spans cost so far
    is ``hopeless``, no longer ones are measured, which cost more.
    """
    found = dict(known or {})
    spans = best_spans(model, script, judged[:1], pool) if steps else []
    for span in spans:
        for step in steps:
            option = replace(step, count=len(span), first=script.blocks.index(span[0]))
            if str(option) in found:
                continue
            try:
                change = option.reshape(model, script, calibration, pool, seed)
            except UnsuitableError:
                continue
            original = streamed(model.twin(), judged, script, pool=pool)
            candidate = streamed(
                model, judged, script, change.forms, biases=change.biases, dropped=frozenset(change.dropped), pool=pool
            )  # fmt: skip
            quality = compare(original, candidate, judged, False, script.outputs)
            found[str(option)] = Structural([], list(change.dropped), float(np.mean(quality.divergence)), sorted(change.biases))
            done(found)
        if found and hopeless(min(each.harm for each in found.values())):
            break
    return found


def best_spans(model: Model, script: Script, batches: Sequence[Batch], pool: SpillPool) -> list[tuple[str, ...]]:
    """The span of least cosine change of each length, shortest first."""
    most = len([name for name in script.blocks if script.may_go([name])]) // 3
    lengths = [length for length in SPAN_LENGTHS if length <= most]
    if not lengths:
        return []
    changes = every_change(model, script, batches, lengths[-1], pool)
    spans = [[span for span in changes if len(span) == length] for length in lengths]
    return [min(found, key=lambda span: changes[span]) for found in spans if found]
