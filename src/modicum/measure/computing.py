"""Which dtype a run computes in, for all who take part in it and whoever goes on with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from modicum.data.splits import Splits
from modicum.measure.settings import Settings
from modicum.models.model import Model
from modicum.runtime.compute import Compute, chosen
from modicum.sweep.ranks import LONE, Ranks
from modicum.work.workdir import WorkDir

Settle = Callable[[Model, Splits], Compute]


def agreed(settings: Settings, place: WorkDir | None = None, ranks: Ranks = LONE, kept: Any = None) -> Settle:
    """Decides for all ``ranks``: as an interrupted run in ``place`` began, else as a measurement says that was ``kept``, else what suits here.

    What was asked for goes before a measurement: the run is another, its sweep the same.
    """

    def begun(model: Model, data: Splits) -> Compute | None:
        own = lambda: ranks.stamped(settings.fingerprint(model.hash(), data.hashes))
        return None if place is None else Compute.from_json(place.begun(own))  # one run has one reason, however often it was interrupted

    def settle(model: Model, data: Splits) -> Compute:
        before = _as_measured(kept) if settings.compute == "auto" else None
        return ranks.first("compute", lambda: begun(model, data) or before or chosen(model, settings.compute))

    return settle


def _as_measured(found: Any) -> Compute | None:
    known = Compute.from_json(found)
    return None if known is None else replace(known, why=f"as it was measured: {known.why}")
