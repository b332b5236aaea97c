"""Gradients by weight, taken once for all that ask for them, and kept to resume from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path

from modicum.core.budget import readable
from modicum.core.errors import ModelError
from modicum.core.method import Need
from modicum.core.option import Option
from modicum.data.splits import Batch, count_rows
from modicum.measure.subject import Subject
from modicum.measure.writing import written_by
from modicum.sweep.ranks import LONE, Ranks
from modicum.sweep.slopes import weight_gradients
from modicum.sweep.spill import SpillPool
from modicum.work.meter import Meter
from modicum.work.store import load_slopes, save_slopes

# What such methods declare.
ASKS = {Need.SLOPES, Need.WINDOW, Need.GENERAL}


def asked(options: Mapping[str, Iterable[Option]]) -> dict[str, frozenset[Need]]:
    """Of options by unit, the units of which some option asks for gradients by weight, and which."""
    found = {name: frozenset().union(*(option.needs & ASKS for option in some)) for name, some in options.items()}
    return {name: needs for name, needs in found.items() if needs}


def take(
    subject: Subject, wanted: Mapping[str, frozenset[Need]], batches: Sequence[Batch], places: Sequence[Path], pool: SpillPool, meter: Meter,
    ranks: Ranks = LONE,
) -> list[str]:  # fmt: skip
    """Let all sweeps of a run know the gradients of what is ``wanted``; what there is to tell.

    Those that one of ``places`` has are not taken again; what is taken is kept at the last.
    """
    script = subject.script
    if not wanted or script.slopes.keys() >= _reachable(subject, wanted):
        return []
    window, events = _window(subject, wanted, sum(map(count_rows, batches)))
    kept = [path for path in places if all(ranks.gather(f"{path.name} kept", path.exists()))]
    if kept:
        script.slopes = load_slopes(kept[0])
        return events
    meter.progress.start("gradients by weight", sum(map(count_rows, batches)))
    try:
        with meter.stage("gradients by weight"):
            script.slopes = weight_gradients(
                subject.felt, batches, script, wanted.keys(), subject.settings.seed, window=window, pool=pool, ranks=ranks,
                tick=meter.progress.step,
            )  # fmt: skip
            if general := {name for name, needs in wanted.items() if Need.GENERAL in needs}:
                events += _add_general(subject, general, batches, pool, ranks)
    except ModelError as error:
        return [f"gradients by weight: were not taken ({error})"]
    save_slopes(places[-1], script.slopes)
    return events


def _add_general(subject: Subject, units: Set[str], batches: Sequence[Batch], pool: SpillPool, ranks: Ranks) -> list[str]:
    """See what is felt on text that the model writes itself; of a model that writes none, on what calibrates, by labels of its own."""
    script, settings = subject.script, subject.settings
    causal = subject.model.is_causal
    rows = sum(map(count_rows, batches))
    own = [{"input_ids": text[None]} for text in written_by(subject.model, settings, rows)] if causal else batches
    found = weight_gradients(subject.felt, own, script, units, settings.seed, drawn=not causal, pool=pool, ranks=ranks)
    script.slopes = {name: replace(one, general=found[name].information) if name in found else one for name, one in script.slopes.items()}
    return [] if causal else ["gradients by weight: the model writes no text; what it knows in general was told on the calibration data"]


def _reachable(subject: Subject, wanted: Mapping[str, frozenset[Need]]) -> set[str]:
    return {name for name in wanted if not subject.script.data_free(subject.model.units[name])}


def _window(subject: Subject, wanted: Mapping[str, frozenset[Need]], rows: int) -> tuple[int, list[str]]:
    """Sequences whose gradients are kept: all of them, or as many as there is room for, and what there is to tell."""
    if not any(Need.WINDOW in needs for needs in wanted.values()):
        return 0, []
    each = sum(2 * subject.model.units[name].size for name in _reachable(subject, wanted))
    room = max(1, subject.memory.gradients // max(each, 1))
    if room >= rows:
        return rows, []
    return room, [
        f"gradients by weight: those of the last {room} of {rows} sequences are kept, one takes {readable(each)}. A larger --ram keeps more."
    ]
