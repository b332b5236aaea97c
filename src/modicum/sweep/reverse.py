"""Gradients of the output by a reverse sweep: block inputs are stored, blocks recomputed backward, one block in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from modicum.core.errors import ModelError
from modicum.core.unit import Unit
from modicum.data.splits import Batch, call
from modicum.models.model import Model
from modicum.models.structure import kind_of
from modicum.sweep.collect import has_rows, input_rows
from modicum.sweep.experts import Use, Watch
from modicum.sweep.rehearsal import Script, module_units


@dataclass(frozen=True)
class Sensitivity:
    """How much the output feels a unit's output: ``gradient`` (rows,) summed squares per draw, and mean squared input ``square`` (columns,).

    For an embedding, which is looked up, ``gradient`` is (width,) and ``square`` None.
    """

    gradient: torch.Tensor
    square: torch.Tensor | None


def output_gradients(model: Model, batches: Sequence[Batch], script: Script, seed: int = 0) -> dict[str, Sensitivity]:
    """Sum over positions of the squared gradient of the output's log-likelihood, per draw, by unit and row: the diagonal Fisher of outputs.

    Labels are drawn from the model's own distribution (seeded), so that half the sum over rows of gradient × squared output error is the
    second-order KL per draw (token, image). For models without logits the gradient is that of random projections of the output,
    scaled so that the same sum is half the relative squared error. Units whose output is not one tensor, or that are never called, are
    absent. Raises ``ModelError`` where the model cannot be differentiated.
    """
    collected = _Gradients(model, script, torch.Generator().manual_seed(seed))
    model.weights.load(model.trunk)
    for batch in batches:
        collected.add(batch)
    return collected.found()


class _Gradients:
    def __init__(self, model: Model, script: Script, generator: torch.Generator):
        self.model, self.script, self.generator = model, script, generator
        self.units, self.modules = module_units(model), dict(model.module.named_modules())
        self.totals: dict[str, torch.Tensor] = {}
        self.squares: dict[str, tuple[torch.Tensor, int]] = {}
        self.draws = 0
        # A tied weight is felt at the head, where its rows are outputs; where no alias multiplies, at the look-up.
        self.felt: dict[str, str] = {}
        for name, unit in self.units.items():
            if unit.name not in self.felt or kind_of(self.modules[name]) != "embedding":
                self.felt[unit.name] = name
        self.experts = {(unit.module, unit.parameter, unit.expert): unit for unit in model.units.values() if unit.kind == "expert"}

    def found(self) -> dict[str, Sensitivity]:
        """What was collected, per draw."""
        means = {name: total / max(count, 1) for name, (total, count) in self.squares.items()}
        return {name: Sensitivity(total / max(self.draws, 1), means.get(name)) for name, total in self.totals.items()}

    def add(self, batch: Batch) -> None:
        with self._patched(), _frozen(self.model.module), torch.enable_grad():
            try:
                loss, draws = likelihood(call(self.model.module, batch), self.generator)
                loss.backward()
            except RuntimeError as error:
                first = str(error).splitlines()[0]
                raise ModelError(
                    f"{self.model.name}: must be differentiable to weigh errors by gradients ({first}). Use --harm error."
                ) from error
        self.draws += draws

    @contextmanager
    def _patched(self) -> Iterator[None]:
        names = [*self.units, *self.script.stacks, *self.model.blocks]
        had = {name: self.modules[name].__dict__.get("forward") for name in names}
        try:
            for name in self.units:
                self.modules[name].forward = self._unit(name, self.modules[name].forward)
            for name in self.script.stacks:
                self.modules[name].forward = self._stack(name, self.modules[name].forward)
            for name in self.model.blocks:
                self.modules[name].forward = self._block(name, self.modules[name].forward)
            yield
        finally:
            for name, before in had.items():
                if before is None:
                    self.modules[name].__dict__.pop("forward", None)
                else:
                    self.modules[name].forward = before

    def _block(self, name: str, original: Callable) -> Callable:
        weights, parameters = self.model.weights, self.model.blocks[name].parameters

        def held(*args: Any, **kwargs: Any) -> Any:
            weights.load(parameters)
            try:
                return original(*args, **kwargs)
            finally:
                weights.release(parameters)

        return lambda *args, **kwargs: checkpoint(held, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    def _unit(self, name: str, original: Callable) -> Callable:
        unit = self.units[name]

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            if not isinstance(output, torch.Tensor):
                return output
            if not output.requires_grad:
                output = output.detach().requires_grad_().clone()
            if self.felt[unit.name] == name:
                axis = 1 if unit.kind == "convolution" else output.ndim - 1
                self._hook(output, axis, lambda squares: self._keep(unit, squares))
                self._see(unit, self.modules[name], args[0] if args else next(iter(kwargs.values())))
            return output

        return forward

    def _stack(self, name: str, original: Callable) -> Callable:
        owner = self.modules[name]

        def hook(use: Use) -> None:
            unit = self.experts[name, self.model.weights.first[f"{name}.{use.attribute}"], use.expert]
            if use.output.requires_grad:
                part = use.part
                self._hook(use.output, use.output.ndim - 1, lambda squares: self._keep(unit, squares), part)
                self._see(unit, owner, use.inputs)

        def forward(*args: Any, **kwargs: Any) -> Any:
            stacks = {attribute: owner._parameters[attribute].detach() for attribute in self.script.stacks[name].attributes}
            with Watch(stacks, hook):
                return original(*args, **kwargs)

        return forward

    def _see(self, unit: Unit, module: torch.nn.Module, inputs: torch.Tensor) -> None:
        if not inputs.is_floating_point() or not has_rows(unit, module) or kind_of(module) == "embedding":
            return
        rows = input_rows(unit, module, inputs.detach()).float()
        total, count = self.squares.get(unit.name, (torch.zeros(unit.shape[1], device=rows.device), 0))
        self.squares[unit.name] = (total + rows.square().sum(0), count + len(rows))

    def _keep(self, unit: Unit, squares: torch.Tensor) -> None:
        self.totals[unit.name] = self.totals.get(unit.name, 0) + squares

    @staticmethod
    def _hook(output: torch.Tensor, axis: int, keep: Callable[[torch.Tensor], None], part: int | None = None) -> None:
        def hooked(gradient: torch.Tensor) -> None:
            value = (gradient if part is None else gradient[part : part + 1]).float().square()
            keep(value.sum([other for other in range(value.ndim) if other != axis]))

        output.register_hook(hooked)


@contextmanager
def _frozen(module: torch.nn.Module) -> Iterator[None]:
    """No parameter collects a gradient: only outputs are felt."""
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def output_tensor(output: Any) -> tuple[torch.Tensor, bool]:
    """The tensor that stands for a model's output, and whether it holds logits. Raises ``ModelError`` where there is none."""
    for name in ("logits", "logits_per_image", "prediction_logits"):
        if isinstance(value := getattr(output, name, None), torch.Tensor):
            return value, True
    candidates = [output] if isinstance(output, torch.Tensor) else list(output.values()) if hasattr(output, "values") else output
    if isinstance(candidates, list | tuple):
        for value in candidates:
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                return value, False
    raise ModelError("model: its output must hold a float tensor, holds none. Wrap it so that forward returns logits or features.")


def likelihood(output: Any, generator: torch.Generator) -> tuple[torch.Tensor, int]:
    """A scalar whose gradient has the output's Fisher information as covariance, and the number of draws it sums over."""
    value, logits = output_tensor(output)
    if logits:
        flat = value.reshape(-1, value.shape[-1]).float()
        drawn = torch.multinomial(flat.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0].to(flat.device)
        return torch.nn.functional.cross_entropy(flat, drawn, reduction="sum"), len(flat)
    flat = value.reshape(len(value), -1).float()
    signs = torch.randint(0, 2, flat.shape, generator=generator).to(flat) * 2 - 1
    return (flat * signs / flat.detach().square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)).sum(), len(flat)
