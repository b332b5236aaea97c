"""What ordinary text feels of a change: per layer the second moments of its inputs and of the gradients of its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from modicum.core.unit import Unit
from modicum.edit.taught import Taught, noted
from modicum.models.trainable import trainable
from modicum.numerics.gram import add_gram, mirror

# Sequences of protected text that outputs are felt on, and how many of them run at once.
_FELT, _TOGETHER = 24, 8


def moments(taught: Taught, names: Sequence[str]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The mean of ``x xᵀ`` (columns, columns) over a layer's inputs and of ``g gᵀ`` (rows, rows) over gradients of its outputs, on protected text.

    Labels are drawn from what the model says, as it was opened, so the two are the Kronecker factors of its Fisher information: to second order a
    change ``D`` makes text diverge by ``tr(g gᵀ D x xᵀ Dᵀ) / 2`` nats a token, were it the only layer. Layers that are never called, whose weights
    others use, are left out.
    """
    before, taught.changes = taught.changes, {}
    inputs, outputs, count = dict[str, torch.Tensor](), dict[str, torch.Tensor](), 0
    chance = torch.Generator().manual_seed(0)
    try:
        for some in taught.sequences[:_FELT].split(_TOGETHER):
            met: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
            hooks = [taught.writable[name].register_forward_hook(partial(noted, met, name)) for name in names]
            try:
                with torch.enable_grad():
                    logits = taught.module(input_ids=some, use_cache=False).logits.float().flatten(0, 1)
                    labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=chance)[:, 0]
                    loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
                    gradients = torch.autograd.grad(loss, [output for _, output in met.values()], allow_unused=True)
            finally:
                for hook in hooks:
                    hook.remove()
            for name, gradient in zip(met, gradients):
                if gradient is None:
                    continue
                for totals, each in ((inputs, met[name][0]), (outputs, gradient)):
                    flat = each.flatten(0, -2).float()
                    add_gram(totals.setdefault(name, torch.zeros(flat.shape[1], flat.shape[1])), flat)
            count += some.numel()
    finally:
        taught.changes = before
    return {name: (mirror(inputs[name]) / count, mirror(outputs[name]) / count) for name in names if name in outputs}


def whitening(moment: torch.Tensor, damping: float) -> torch.Tensor:
    """``L⁻¹`` (size, size) with ``L Lᵀ`` the moment, damped by a share of its mean diagonal."""
    size = moment.diagonal().mean().clamp(min=1e-30)
    damped = (moment / size).double() + damping * torch.eye(len(moment), dtype=torch.float64)
    return (torch.linalg.inv(torch.linalg.cholesky(damped)) / size.double().sqrt()).float()


class Whitened:
    """Layers whose weights are, for a while, what they were plus whitened numbers, all in one vector of ``size``."""

    def __init__(self, taught: Taught, names: Sequence[str], white: dict[str, tuple[torch.Tensor, torch.Tensor]]):
        units: dict[str, Unit] = trainable(taught.module)
        self.white, self.units = white, {name: units[name] for name in names}
        self.parameters = {name: taught.module.get_parameter(units[name].parameter) for name in names}
        self.size = sum(unit.shape[0] * unit.shape[1] for unit in self.units.values())

    def changes(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Changes (rows, columns) of the weights."""
        return {name: left.T @ some @ right for (name, (left, right)), some in zip(self.white.items(), self._parts(flat))}

    def _parts(self, flat: torch.Tensor) -> list[torch.Tensor]:
        shapes = [unit.shape for unit in self.units.values()]
        return [some.view(shape) for some, shape in zip(flat.split([rows * columns for rows, columns in shapes]), shapes)]

    @contextmanager
    def holding(self, flat: torch.Tensor) -> Iterator:
        """Inside, the weights have the change, and what is given tells the gradient of all that was differentiated so far."""
        before = {name: parameter.data for name, parameter in self.parameters.items()}
        try:
            for name, change in self.changes(flat).items():
                parameter = self.parameters[name]
                parameter.data = before[name] + self.units[name].stored(change).reshape(parameter.shape)
                parameter.grad = None
                parameter.requires_grad_(True)
            yield self._gradient
        finally:
            for name, parameter in self.parameters.items():
                parameter.data, parameter.grad = before[name], None
                parameter.requires_grad_(False)

    def _gradient(self) -> torch.Tensor:
        found = []
        for name, (left, right) in self.white.items():
            gradient = self.parameters[name].grad
            whole = torch.zeros(self.units[name].shape) if gradient is None else self.units[name].matrix(gradient)
            found.append((left @ whole @ right.T).reshape(-1))
        return torch.cat(found)
