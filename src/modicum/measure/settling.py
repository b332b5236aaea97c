"""In which dtype a model is computed: that which was chosen, where its forward runs in it."""

from __future__ import annotations

from modicum.core.errors import DataError, ModicumError, SettingError, quoted
from modicum.data.forward import own_errors, require_suitable
from modicum.data.splits import Batch, Splits, one_row
from modicum.judge.quality import streamed
from modicum.measure.limits import extent_of, limits_of
from modicum.measure.settings import Settings
from modicum.models.model import Model
from modicum.runtime.compute import Compute
from modicum.sweep import Script, rehearse
from modicum.sweep.rehearsal import use_eager_experts


def settled(model: Model, data: Splits, settings: Settings, compute: Compute, alone: bool = False) -> tuple[Model, Script, Compute]:
    """The model in the dtype to compute in, and what its rehearsal sees; in its weights' own where it does not run in another, unless that was
    asked for, which raises ``SettingError``.
    """
    use_eager_experts(model)
    other, notes = compute.of(model), list(model.notes)
    try:
        found = other, _rehearsed(other, data, settings, alone), compute
        if other is not model and _has_values(data.calibration[0]):  # which the model's own dtype may not take
            for _ in streamed(model, [one_row(data.calibration[0])], found[1]):
                pass
    except Exception as error:
        if other is model:
            raise
        model.notes[:] = notes
        found = model, _rehearsed(model, data, settings, alone), compute.refused(error)  # raises what has another cause
        if settings.compute != "auto":
            raise SettingError(
                f"compute {settings.compute}: {model.name}'s own forward must run in it, raises {type(error).__name__}: {quoted(error)}. "
                "Leave it out."
            ) from error
    model.notes += [found[2].event()] if compute.changed else []
    return found


def _has_values(batch: Batch) -> bool:
    return any(value.is_floating_point() for value in (batch.values() if isinstance(batch, dict) else batch))


def _rehearsed(model: Model, data: Splits, settings: Settings, alone: bool) -> Script:
    """What a rehearsal sees. What the model's own forward raises is told as its own; an error of ours stays one."""
    batch, *others = (*data.calibration, *data.validation, *data.test)
    try:
        return rehearse(model, batch, others, output=settings.output, classes=settings.classes, alone=alone)
    except ModicumError:
        raise
    except IndexError:
        raise DataError(f"{model.name}: {extent_of(model.module, batch)} must fit the model{limits_of(model)}.") from None
    except Exception:
        if not model.weights.lazy:
            require_suitable(model.stored.module, batch)  # the caller's own module, run as the caller would
            raise
        with own_errors(model.module, batch):
            raise
        raise
