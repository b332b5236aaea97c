"""Healing of a run: the compressed model beside its original, trained, judged, and taken only where it is better."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.core.budget import readable
from modicum.core.errors import BudgetError, SettingError
from modicum.core.memory import own_memory
from modicum.core.parametrization import Parametrization
from modicum.data.splits import count_tokens, one_row
from modicum.fit.made import Made
from modicum.fit.scene import Scene
from modicum.forms import Form, Sum
from modicum.models.model import Model
from modicum.numerics.interval import interval
from modicum.restrict._healer import straight
from modicum.train.healing import Healed, heal, healers
from modicum.train.objectives import Objective, distillation, imitation
from modicum.train.settings import Loop
from modicum.work.meter import Meter

# Tokens of a teacher that are told one by one; all others are told as one.
TOP = 256
# Bytes per trained number: itself, its gradient and two moments; tensors of a layer's widths that are kept for each token until its gradient.
_TRAINED, _KEPT = 16, 3


def check(scene: Scene) -> None:
    """Raise ``SettingError`` or ``BudgetError`` where healing was asked for and cannot be."""
    request = scene.request
    if not request.heal:
        if (closing := next((option for option in scene.options if option.closing), None)) is not None:
            raise SettingError(f"heal: must be 1 or more where {str(closing)!r} trains its last step, is 0. Pass --heal 200.")
        return
    healers(request.heal_with)
    if scene.ranks.count > 1:
        raise SettingError(f"heal: must be done by one process, {scene.ranks.count} came. Fit without it, and heal the result.")
    if scene.model.weights.device.type != "cpu":
        raise SettingError(f"heal: must be done on the processor, the model is on {scene.model.weights.device}. Pass --device cpu.")
    if request.ram is not None:
        _together(scene)


def _needed(scene: Scene, together: int) -> int:
    """Bytes of both models, what is trained and what is kept for its gradient, with so many sequences at a time."""
    model, row = scene.model, one_row(scene.data.calibration[0])
    wide = sum(sum(unit.shape) for unit in model.units.values())
    weights = sum(model.weights.held(name).numel() * model.weights.loaded(name).itemsize for name in model.weights.names)
    kept = _KEPT * wide * count_tokens([row]) * together * model.computed.itemsize
    most = sum(unit.size for unit in model.units.values()) if "held" in scene.request.heal_with.split() else model.parameters // 16
    return own_memory() + 2 * weights + _TRAINED * most + kept


def _together(scene: Scene) -> int:
    """As many sequences at a time as fit. Raises ``BudgetError`` where not even one does."""
    ram, batch = scene.request.ram, scene.request.heal_batch
    if ram is None:
        return batch
    found = next((count for count in range(batch, 0, -1) if _needed(scene, count) <= ram), 0)
    if not found:
        raise BudgetError(
            f"--ram: must be at least {readable(_needed(scene, 1))} to heal this model beside its original, got {readable(ram)}. Leave out --heal."
        )
    return found


def healed(made: Made, folder: Path, meter: Meter) -> tuple[Made, dict[str, Any]]:
    """The model of a run healed, or as it was where that is no better on validation data; and the account of it."""
    scene, request = made.scene, made.scene.request
    loop = Loop(
        steps=request.heal, rate=request.heal_rate, batch=request.heal_batch, together=_together(scene), seed=request.seed, every=25
    )
    folder.mkdir(exist_ok=True)
    with meter.stage("heal", loop.steps):
        found = _trained(made, loop, folder, meter)
        after = made.with_healed(found.forms, found.vectors)
    with meter.stage("judge", 1):
        rows = len(scene.data.validation) * request.micro_batch
        judged = paired(made.lost(rows), after.lost(rows) if found.losses else None)
    better = bool(found.losses) and judged["after"] < judged["before"]
    events = [found.event] if found.event else []
    if found.losses and not better:
        events.append(
            f"healing: was left out, it made the model worse on validation data ({judged['before']:.4g} before, {judged['after']:.4g} after)."
        )
    account = {
        "steps": loop.steps, "with": request.heal_with, "rate": loop.rate, "batch": loop.batch, "trained": found.trained,
        "methods": dict(found.methods), "losses": found.losses, "seconds": found.seconds, "validation": judged, "taken": better,
        "events": events,
    }  # fmt: skip
    return (after if better else made), account


def paired(before: list[float], after: list[float] | None) -> dict[str, Any]:
    """Means of what sequences lost before and after, and of the difference with a 95 % interval."""
    told: dict[str, Any] = {"before": sum(before) / max(1, len(before)), "sequences": len(before)}
    if after is None:
        return told | {"after": None, "change": None, "interval": None}
    mean, low, high = interval([late - early for early, late in zip(before, after)])
    return told | {"after": sum(after) / max(1, len(after)), "change": mean, "interval": [low, high]}


def _trained(made: Made, loop: Loop, folder: Path, meter: Meter) -> Healed:
    scene = made.scene
    teacher = _whole(scene.model)
    student, forms = _student(made, teacher)
    vectors = {
        name: made.model.weights.read(name)
        for name in scene.model.weights.names
        if scene.model.weights.held(name).ndim == 1 and scene.model.weights.held(name).is_floating_point()
    }
    vectors |= {f"{module}.bias": bias for module, bias in made.change.biases.items()}
    own = {name: option.closing for name, option in made.options.items() if name in forms and isinstance(option.closing, Parametrization)}
    return heal(
        student.module, forms | {name: _beneath(forms[name]) for name in own}, vectors, scene.data.calibration, _objective(scene, teacher.module),
        loop, healers(scene.request.heal_with), own=own, keep=folder, progress=meter.progress,
    )  # fmt: skip


def _beneath(form: Form) -> Form:
    """What an option made before its last step added a part."""
    assert isinstance(form, Sum)
    return form.parts[0] if len(form.parts) == 2 else Sum(form.parts[:-1])


def _objective(scene: Scene, teacher: nn.Module) -> Objective:
    batch = scene.data.calibration[0]
    if scene.model.is_causal and isinstance(batch, dict) and "input_ids" in batch:
        return distillation(teacher, top=TOP)
    return imitation(teacher, scene.script.outputs)


def _whole(model: Model) -> Model:
    """The model with all weights in memory."""
    whole = model.twin()
    whole.weights.load(whole.weights.names)
    return whole


def _student(made: Made, teacher: Model) -> tuple[Model, dict[str, Form]]:
    """A module that computes with what was made, its other weights shared with the teacher's, and the forms by unit."""
    model = teacher.twin()
    put, brought = model.weights.put, model.weights.brought
    for name in model.weights.names:
        put(name, teacher.weights.held(name))
    for name, value in made.values.items():
        put(name, brought(value))
    forms = {name: made.forms[name] for name in made.forms}
    stacks: dict[str, torch.Tensor] = {}
    for name, form in forms.items():
        unit = model.units[name]
        if unit.expert is None:
            put(unit.parameter, brought(unit.stored(form.dense())))
        else:
            stack = stacks.setdefault(unit.parameter, teacher.weights.held(unit.parameter).clone())
            stack[unit.expert] = brought(unit.stored(form.dense()))
        if (rounding := form.rounding) is not None:
            model.module.get_submodule(unit.module).register_forward_pre_hook(partial(_rounded, rounding))
    for name, stack in stacks.items():
        put(name, stack)
    for module, bias in made.change.biases.items():
        model.module.get_submodule(module)._parameters["bias"] = nn.Parameter(brought(bias), requires_grad=False)
    for block in made.dropped:
        model.module.get_submodule(block).forward = partial(_passed, block in made.scene.script.tuples)
    return model, forms


def _rounded(rounding: Any, module: nn.Module, args: Any) -> Any:
    """Inputs as the form's product takes them, with the gradient of those that came."""
    return (straight(args[0], rounding(args[0].detach().clone())), *args[1:])


def _passed(as_tuple: bool, *args: Any, **kwargs: Any) -> Any:
    """What a dropped block answers: what it was given."""
    given = args[0] if args else kwargs.get("hidden_states", next((v for v in kwargs.values() if isinstance(v, torch.Tensor)), None))
    return (given,) if as_tuple else given
