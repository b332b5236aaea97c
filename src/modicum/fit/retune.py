"""Batch norms measured anew: what a compressed model gives has other means and variances than the original's, which scale and bias can take up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from modicum.core.errors import SettingError
from modicum.data.splits import Batch, call
from modicum.fit.made import Made, changed
from modicum.fit.scene import Scene
from modicum.models.model import Model

# Means and deviations (channels,), float64.
Statistics = tuple[torch.Tensor, torch.Tensor]


def check(scene: Scene) -> None:
    """Raise ``SettingError`` where it was asked for and there are no batch norms."""
    if scene.request.retune and not _norms(scene.model.stored.module):
        raise SettingError(f"retune: {scene.model.name} must have batch norms with a scale and a bias, has none. Leave it out.")
    if scene.request.retune and scene.ranks.count > 1:
        raise SettingError(f"retune: must be done by one process, {scene.ranks.count} came. Leave it out.")


def retuned(made: Made) -> tuple[Made, list[str]]:
    """The model with its batch norms tuned to calibration data, or as it was where that is no better on validation data.

    Where the inputs of a norm ``γ (x - μ) / σ + β`` had mean m and deviation s in the original and have m' and s' now, ``(x - m') s / s' + m`` in the
    place of x gives them back what they had: a norm of scale ``γ s / s'`` and bias ``β + γ ((μ - m') s / s' + m - μ) / σ``, so statistics
    stay as they are stored. Where μ and σ are m and s, it is the norm of new statistics (Hubara and others 2020, AdaQuant). The compressed model's
    are measured in one pass in which each norm already gets its inputs so.
    """
    scene = made.scene
    values: dict[str, torch.Tensor] = {}
    whole, model = scene.model.twin(), changed(scene, made.dense()).twin()
    targets = _measured(whole, scene.data.calibration, {})
    found = _measured(model, scene.data.calibration, targets)
    for name, norm in _norms(model.module).items():
        if name in found and name in targets:
            values |= _folded(name, norm, targets[name], found[name])
    after, rows = made.with_healed({}, values), len(scene.data.validation) * scene.request.micro_batch
    losses = [sum(lost) / max(1, len(lost)) for lost in (made.lost(rows), after.lost(rows))]
    if losses[1] >= losses[0]:
        return made, [f"retune: was left out, it made the model worse on validation data ({losses[0]:.4g} before, {losses[1]:.4g} after)."]
    return after, [f"retune: {len(values) // 2} batch norms tuned anew; {losses[0]:.4g} before, {losses[1]:.4g} after on validation data"]


def _measured(model: Model, batches: Iterable[Batch], targets: Mapping[str, Statistics]) -> dict[str, Statistics]:
    """Means and deviations of the inputs of each norm, by channel; where there are ``targets``, what each batch gives goes on with those."""
    sums: dict[str, list[torch.Tensor]] = {}

    def before(name: str, norm: _BatchNorm, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        x = args[0].double()
        axes = [axis for axis in range(x.ndim) if axis != 1]
        mean, square = x.mean(axes), x.square().mean(axes)
        sums.setdefault(name, [torch.zeros_like(mean), torch.zeros_like(mean), torch.zeros(())])
        for total, value in zip(sums[name], (mean, square, torch.ones(()))):
            total += len(x) * value
        if name not in targets:
            return None
        shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
        middle, spread = targets[name]
        scale = spread / (square - mean.square()).clamp_min(norm.eps).sqrt()
        return (((x - mean.view(shape)) * scale.view(shape) + middle.view(shape)).to(args[0].dtype), *args[1:])

    model.weights.load(model.weights.names)
    hooks = [norm.register_forward_pre_hook(partial(before, name)) for name, norm in _norms(model.module).items()]
    try:
        with torch.no_grad():
            for batch in batches:
                call(model.module, batch)
    finally:
        for hook in hooks:
            hook.remove()
    least = {name: norm.eps for name, norm in _norms(model.module).items()}
    told = {name: (mean / count, square / count) for name, (mean, square, count) in sums.items()}
    return {name: (mean, (square - mean.square()).clamp_min(least[name]).sqrt()) for name, (mean, square) in told.items()}


def _norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """Batch norms by name that have statistics, a scale and a bias."""
    return {
        name: norm for name, norm in module.named_modules()
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.weight is not None and norm.bias is not None
    }  # fmt: skip


def _folded(name: str, norm: _BatchNorm, target: Statistics, found: Statistics) -> dict[str, torch.Tensor]:
    """Scale and bias that give inputs of the statistics ``found`` what those of ``target`` got."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale, own, mean = target[1] / found[1], norm.weight.double(), norm.running_mean.double()
    bias = norm.bias.double() + own * ((mean - found[0]) * scale + target[0] - mean) / (norm.running_var.double() + norm.eps).sqrt()
    return {f"{name}.weight": (own * scale).to(norm.weight.dtype), f"{name}.bias": bias.to(norm.bias.dtype)}
