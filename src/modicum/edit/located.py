"""Locate and edit: values that make a model say what it should, at the subject's last token, written to keys by one linear solve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from typing_extensions import override

from modicum.core.errors import ModelError
from modicum.core.settings import param
from modicum.edit.editor import Editor, Past
from modicum.edit.facts import Fact
from modicum.edit.normal_equations import NormalEquations
from modicum.edit.rows import Rows
from modicum.edit.taught import Taught, answer_loss, parts


@dataclass(frozen=True, kw_only=True)
class Located(Editor):
    """Finds for each fact what the stream of the last layer's block should hold at the subject's last token, and writes it layer by layer.

    The wanted state ``h + d`` is found by ``steps`` of Adam on ``d``, the same in all contexts; then each layer from the first to the last takes
    its share of what is still missing, ``(h + d - h now) / layers left``, on keys that are the mean over contexts.
    """

    exact: ClassVar[bool] = False

    steps: int = param(25, "steps in which the wanted state is found", between=(1, 10_000))
    rate: float = param(0.5, "rate of those steps, of the stream's own size", between=(1e-6, 1e3))
    pull: float = param(0.05, "how strongly the wanted state is drawn back", between=(0.0, 1e6))
    text: float = param(100.0, "tokens of ordinary text that are protected beside the facts", between=(1e-6, 1e12))
    ridge: float = param(1e-3, "share of the mean square of the inputs that protects every direction", between=(1e-9, 1e6))

    @override
    def teach(self, taught: Taught, facts: Sequence[Fact], past: Past) -> Past:
        names, rows = self.chosen(taught), self.rows(taught, facts)
        block = taught.blocks[names[-1]]
        states = _states(taught, rows, names[-1], block, self.contexts + 1)[1]
        wanted = states + self._wanted(taught, rows, block, states)
        covariances = taught.covariances(names)
        for place, name in enumerate(names):
            keys, now = _states(taught, rows, name, block, self.contexts + 1)
            known = past.sums.setdefault(name, NormalEquations(wanted.shape[1], keys.shape[1]))
            new = NormalEquations(wanted.shape[1], keys.shape[1])
            new.add(keys, (wanted - now) / (len(names) - place))
            taught.add({name: self.solved(new, known, covariances[name])})
            known.add(keys, torch.zeros(len(keys), wanted.shape[1]))
        return Past(past.count + len(facts), past.sums)

    @override
    def chosen(self, taught: Taught) -> list[str]:
        """By default without the last block: what it gives at a subject, no later place sees."""
        names, every = super().chosen(taught), list(taught.layers)
        return names if self.layers or names[-1] != every[-1] else names[:-1] or every[-2:-1] or names

    def solved(self, new: NormalEquations, known: NormalEquations, covariance: torch.Tensor) -> torch.Tensor:
        """The change (rows, columns) that gives new keys their values: what is protected and how is what the editors differ in."""
        return new.solve(protecting(covariance, self.text, self.ridge), exact=self.exact)

    def _wanted(self, taught: Taught, rows: Rows, block: nn.Module, states: torch.Tensor) -> torch.Tensor:
        """What to add (facts, rows) to the stream so that the targets follow."""
        each, size = self.contexts + 1, states.norm(dim=1, keepdim=True).clamp(min=1e-6)
        shift = torch.zeros_like(states).requires_grad_(True)
        optimizer = torch.optim.Adam([shift], lr=self.rate)
        for _ in range(self.steps):
            optimizer.zero_grad()
            start = 0
            for part in parts(rows):
                owner = torch.arange(start, start + len(part)) // each
                hook = block.register_forward_hook(partial(_shifted, part.ends, (shift * size / states.shape[1] ** 0.5)[owner]))
                try:
                    with torch.enable_grad():
                        (answer_loss(taught.logits(part), part).sum() / each).backward()
                finally:
                    hook.remove()
                start += len(part)
            if shift.grad is None or not bool(shift.grad.any()):
                raise ModelError(
                    "edit: the target must depend on what a layer gives at the subject's last token, does not. Write earlier layers."
                )
            with torch.enable_grad():
                (self.pull * shift.square().mean(1).sum()).backward()
            optimizer.step()
        return (shift * size / states.shape[1] ** 0.5).detach()


def protecting(covariance: torch.Tensor, text: float, ridge: float) -> torch.Tensor:
    """``text`` tokens of the covariance, and a ridge of its mean diagonal."""
    size = covariance.diagonal().mean().clamp(min=1e-12)
    return text * covariance + ridge * size * torch.eye(len(covariance)) * max(1.0, text)


def _states(taught: Taught, rows: Rows, name: str, block: nn.Module, each: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Per fact the mean over its contexts of a layer's inputs (facts, columns) and a block's outputs (facts, rows) at the subject's last token."""
    keys, states = [], []
    with torch.no_grad():
        for part in parts(rows):
            met: dict[str, torch.Tensor] = {}
            hooks = [
                taught.layers[name].register_forward_hook(lambda layer, args, output, met=met: met.update(key=args[0])),
                block.register_forward_hook(lambda layer, args, output, met=met: met.update(state=first(output))),
            ]
            try:
                taught.logits(part)
            finally:
                for hook in hooks:
                    hook.remove()
            keys.append(met["key"][part.ending].float())
            states.append(met["state"][part.ending].float())
    mean = lambda found: torch.cat(found).reshape(-1, each, found[0].shape[1]).mean(1)
    return mean(keys), mean(states)


def first(output: Any) -> torch.Tensor:
    """The stream that a block gives, which may stand first among other things."""
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _shifted(ends: torch.Tensor, shift: torch.Tensor, block: nn.Module, args: tuple, output: Any) -> Any:
    stream = first(output)
    places = torch.arange(len(stream))
    moved = stream.index_put((places, ends), shift.to(stream.dtype), accumulate=True)
    return (moved, *output[1:]) if isinstance(output, tuple) else moved
