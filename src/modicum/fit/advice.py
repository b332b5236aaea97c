"""What may do better at the same bytes: another target, and more tokens to calibrate on. Nothing is measured for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modicum.core.budget import readable
from modicum.data.splits import count_tokens
from modicum.fit.choose import Chooser
from modicum.fit.choosing import Chosen
from modicum.fit.scene import Scene
from modicum.fit.verdict import degree, elsewhere

# Share of the files that another target must be able to treat besides, to be worth a word.
_DENSE = 0.2
# Calibration tokens for every column of the widest row, below which the directions of the inputs are guessed rather than measured.
_TOKENS = 4


def advice(scene: Scene, chosen: Chosen, quality: Mapping[str, Any], actual: int) -> list[str]:
    """Clauses for the verdict; nothing where next to nothing was lost."""
    if degree(quality) == "near-lossless":
        return []
    return [*_targets(scene, chosen, quality, actual), *_tokens(scene)]


def _targets(scene: Scene, chosen: Chosen, quality: Mapping[str, Any], actual: int) -> Iterator[str]:
    """Another target: by its forecast where it was measured too, otherwise by what it could treat besides."""
    measured, table, name = scene.measured, chosen.table, scene.target.name
    others = [other for other in (measured.meta["targets"] if measured is not None else ()) if other != name]
    if others and scene.request.set:  # which another target may not hold
        others = [other for other in others if other in scene.subject.possible_targets()]
    if measured is not None and table is not None and chosen.limits.keys() <= {"bytes", "values"}:
        for other in others:
            limits = chosen.limits or {"bytes": actual}
            theirs = Chooser(scene.subject, other, scene.request).table(measured.findings)
            if clause := elsewhere(other, theirs, limits, table.forecast(chosen.picks), quality["mean"]):
                yield clause
    dense = sum(unit.dense_bytes for unit in scene.model.units.values() if scene.target.refusal(unit))
    if name != "modicum" and "modicum" not in others and dense > _DENSE * actual:
        yield f"--target modicum can round {readable(dense)} more, which stay dense for {name}"


def _tokens(scene: Scene) -> Iterator[str]:
    """More tokens, where there were few for the widest rows that were treated on their inputs."""
    if not all(isinstance(batch, Mapping) and "input_ids" in batch for batch in scene.data.calibration):
        return  # pictures and sound have many positions a row
    tokens = count_tokens(scene.data.calibration)
    widest = max((unit.shape[1] for site in scene.sites if not site.data_free for unit in site.units), default=0)
    if tokens < _TOKENS * widest:
        yield f"{tokens} calibration tokens are few for rows of {widest}, more --samples may help"
