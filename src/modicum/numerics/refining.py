"""What a form stores, moved to where its weight loses least on given inputs: whatever the form, and in the same bytes.

With the error ``E = T - V`` of a form's value V against a target T and the covariance H the loss is ``tr(E H Eᵀ)``. A value is linear in each
tensor of a form's numbers (``Form.movable``) while the others stay, so the loss is quadratic in it, and conjugate gradients take it down. What the
value makes of a step, and what a step gets of a gradient, is asked of the form itself by differentiation; so masked values, factors, scales and
sums are one case. Codes of grids and codebooks move by coordinate descent, also in sums and beside rounded inputs; of floats, of blocks and under
cuts they stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from modicum.core.blocks import Blocks, spans
from modicum.forms import Activated, Codebook, Form, Integer, Nested, Sum
from modicum.numerics.codebook_descent import Descent
from modicum.numerics.descent import descend
from modicum.numerics.gram import add_product
from modicum.numerics.grid import Grid
from modicum.numerics.solver import laned
from modicum.numerics.threads import single_threaded, threads

# Steps of conjugate gradients for a tensor of numbers; a round that gains less than this share is the last.
_STEPS, _LITTLE = 12, 1e-4


def refined(form: Form, target: torch.Tensor, moment: torch.Tensor | Blocks, damping: float, rounds: int) -> Form:
    """A form of the same kind and bytes that loses no more of float32 ``target`` (rows, columns) than ``form`` does.

    The covariance is ``moment`` (columns, columns) plus ``damping`` times its mean diagonal. In each of ``rounds`` codes are moved once and each
    tensor of numbers is taken towards its best. *Needs and cost:* about fourteen times rows · columns² multiply-adds for each tensor and round;
    eight copies of the weight in float32.
    """
    refining = _Refining(target, moment, damping)
    with single_threaded():
        least = refining.loss(form)
        for _ in range(rounds):
            best = refining.coded(form, target)
            for name in best.movable():
                best = refining.moved(best, name)
            lost = refining.loss(best)
            if not lost < least:
                break
            form, before, least = best, least, lost
            if least > (1 - _LITTLE) * before:
                break
        return form


class _Refining:
    """A target, how errors are weighed, and moves of a form towards it."""

    def __init__(self, target: torch.Tensor, moment: torch.Tensor | Blocks, damping: float):
        self.target, self.moment, self.damping = target, moment, damping
        mean = float(moment.diagonal().double().mean())
        self.ridge = damping * (mean if mean > 0 else 1.0)
        self.threads = torch.get_num_threads()  # all of them work where any number gives the same bits, in nearly all of the work

    def felt(self, values: torch.Tensor) -> torch.Tensor:
        """``values H`` for values (rows, columns)."""
        with threads(self.threads):
            across = laned(values).T.contiguous()
            found = across * self.ridge
            for columns, square in spans(self.moment):
                add_product(found[columns], square, across[columns])
            return found.T[: len(values)].contiguous()

    def loss(self, form: Form) -> float:
        """``tr(E H Eᵀ)`` of a form."""
        error = self.target - form.value()
        return float(error.mul_(self.felt(error)).sum(dtype=torch.float64))

    def coded(self, form: Form, target: torch.Tensor) -> Form:
        """The form after its codes were moved once, in a sum those of each part towards what the others leave of ``target``."""
        if isinstance(form, Integer):
            group = -1 if form.scale.numel() == 1 else form.group
            with threads(self.threads):
                return descend([target], [Grid(form.bits, group, form.zero is None)], [form], self.moment, self.damping, 1)[0][0]
        if isinstance(form, Nested):
            grid = Grid(form.bits, form.group, form.zero is None)
            with threads(self.threads):
                moved, _ = descend([target], [grid], [form.plain], self.moment, self.damping, 1, held=True)
            return Nested.of(moved[0], form.steps, form.outer, form.scales)
        if isinstance(form, Activated):
            return Activated(self.coded(form.inner, target), form.inputs)
        if isinstance(form, Codebook):
            return Descent(target, form, self.moment, self.damping).refined(1)
        if isinstance(form, Sum):
            parts = list(form.parts)
            for place, part in enumerate(parts):
                parts[place] = self.coded(part, target - _total([*parts[:place], *parts[place + 1 :]], target))
            return Sum(tuple(parts))
        return form

    @torch.enable_grad()
    def moved(self, form: Form, name: str) -> Form:
        """The form with one tensor of its numbers towards its best, or as it is where rounding to the tensor's dtype loses what that gains."""
        numbers = {each: tensor.float() for each, tensor in form.movable().items()}
        stored = form.movable()[name]
        at = torch.zeros(stored.shape, requires_grad=True)
        value = lambda step: form.having({**numbers, name: step}).value().float()
        traced = value(at)
        if traced.grad_fn is None:
            return form
        base = traced.detach()
        back = lambda pull: torch.autograd.grad(traced, at, pull, retain_graph=True)[0]
        worth = back(value(torch.ones_like(at)).detach().sub_(base).mul_(self.moment.diagonal() + self.ridge))
        scale = torch.where(worth > 0, 1 / worth, 0.0) if bool((worth >= 0).all()) else torch.ones_like(worth)
        found = numbers[name].clone()
        left = back(self.felt(self.target - value(found).detach()))
        along = ahead = scale * left
        size = (left * ahead).sum()
        for _ in range(_STEPS if float(size) > 0 else 0):
            turned = back(self.felt(value(along) - base))
            curvature = (along * turned).sum()
            if not curvature > 0:
                break
            step = size / curvature
            found, left = found + step * along, left - step * turned
            ahead = scale * left
            before, size = size, (left * ahead).sum()
            along = ahead + (size / before) * along
        other = form.having({**form.movable(), name: found.to(stored.dtype)})
        return other if self.loss(other) < self.loss(form) else form


def _total(parts: Sequence[Form], like: torch.Tensor) -> torch.Tensor:
    return torch.stack([part.value() for part in parts]).sum(0) if parts else torch.zeros_like(like)
