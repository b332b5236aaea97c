"""What is done to a model before anything is measured of it: turned, smoothed, and its calibration tokens weighed."""

from __future__ import annotations

from collections.abc import Sequence

from modicum.data.splits import Batch
from modicum.measure.importance import attended
from modicum.measure.rotation import rotated
from modicum.measure.settings import Settings
from modicum.measure.smoothing import smoothed
from modicum.models.model import Model
from modicum.runtime.compute import Compute
from modicum.sweep import Script


def prepared(model: Model, script: Script, batches: Sequence[Batch], settings: Settings, compute: Compute) -> tuple[Model, float]:
    """The model as it is measured, with notes of what was done, and what that lost; a script knows how tokens of calibration ``batches`` count.

    Raises the errors of each preparation that is asked for.
    """
    before, lost, told = model, 0.0, list[str]()
    script.sent = settings.starved == "sent"
    if settings.rotate is not None:
        model, lost, said = rotated(model, script, batches, settings.rotate, settings.seed, compute)
        told += said
    if settings.smooth is not None:
        model, said = smoothed(model, script, batches, settings.smooth, compute)
        told += said
    if settings.importance is not None:
        script.important = attended(model, script, batches)
        blocks = len(script.important.blocks)
        told.append(f"importance: tokens of calibration count by the attention that they receive, in {blocks} blocks")
    model.opened, model.notes = before.opened, [*before.notes, *told]
    return model, lost
