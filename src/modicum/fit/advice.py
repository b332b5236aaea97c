"""What may do better at the same bytes: another target, and more tokens to calibrate on. Nothing is measured for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from modicum.core.budget import readable
from modicum.core.plan import Table
from modicum.data.splits import count_tokens
from modicum.fit.choose import Chooser
from modicum.fit.verdict import degree, elsewhere

if TYPE_CHECKING:
    from modicum.fit.run import Run

# Share of the files that another target must be able to treat besides, to be worth a word.
_DENSE = 0.2
# Calibration tokens for every column of the widest row, below which the directions of the inputs are guessed rather than measured.
_TOKENS = 4


def advice(run: Run, quality: Mapping[str, Any], table: Table | None, actual: int) -> list[str]:
    """Clauses for the verdict; nothing where next to nothing was lost."""
    if degree(quality) == "near-lossless":
        return []
    return [*_targets(run, quality, table, actual), *_tokens(run)]


def _targets(run: Run, quality: Mapping[str, Any], table: Table | None, actual: int) -> Iterator[str]:
    """Another target: by its forecast where it was measured too, otherwise by what it could treat besides."""
    others = [name for name in (run.measured.meta["targets"] if run.measured is not None else ()) if name != run.target_name]
    if table is not None and run.limits.keys() <= {"bytes", "values"}:
        for name in others:
            limits = run.limits or {"bytes": actual}
            other = Chooser(run.subject, name, run.request).table(run.findings)
            if clause := elsewhere(name, other, limits, table.harm(run.picks), quality["mean"]):
                yield clause
    dense = sum(unit.dense_bytes for unit in run.model.units.values() if run.target.refusal(unit))
    if run.target_name != "modicum" and "modicum" not in others and dense > _DENSE * actual:
        yield f"--target modicum can round {readable(dense)} more, which stay dense for {run.target_name}"


def _tokens(run: Run) -> Iterator[str]:
    """More tokens, where there were few for the widest rows that were treated on their inputs."""
    if not all(isinstance(batch, Mapping) and "input_ids" in batch for batch in run.data.calibration):
        return  # pictures and sound have many positions a row
    tokens = count_tokens(run.data.calibration)
    widest = max((unit.shape[1] for site in run.sites if not site.data_free for unit in site.units), default=0)
    if tokens < _TOKENS * widest:
        yield f"{tokens} calibration tokens are few for rows of {widest}, more --samples may help"
