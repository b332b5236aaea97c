"""GRACE: facts beside the weights, in a codebook that answers near what it knows and leaves all else the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from typing_extensions import override

from modicum.adapt._added import widths
from modicum.core.errors import ModelError
from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.edit.editor import Editor, Past
from modicum.edit.facts import Fact
from modicum.edit.located import first
from modicum.edit.rows import Rows
from modicum.edit.taught import Taught, answer_loss, parts


@dataclass(frozen=True, kw_only=True)
class Grace(Editor):
    """Keys are what a part of a block gives wherever one of a fact's target's tokens is to follow; values are what must be added there.

    A key's radius is ``reach`` times its distance to the nearest of other keys and of what the protected text gives: text that was looked at
    stays the same bits. What is written is no weight: ``modicum.changed`` computes with it, and ``apply`` refuses it.

    *Needs and cost:* ``steps`` forward and backward passes of the facts; a distance to every key per token afterwards.
    *Differs from the paper:* each token of a target has a key, radii come from the text and do not grow or split, and values are added.
    """

    paper: ClassVar[Paper | None] = Paper(
        title="Aging with GRACE: Lifelong Model Editing with Discrete Key-Value Adaptors",
        arxiv="2211.11031",
        year=2022,
        authors="Thomas Hartvigsen and Swami Sankaranarayanan and Hamid Palangi and Yoon Kim and Marzyeh Ghassemi",
    )

    steps: int = param(60, "steps in which the values are found", between=(1, 10_000))
    rate: float = param(0.1, "rate of those steps, of what the part gives", between=(1e-6, 1e3))
    contexts: int = param(0, "texts before each fact beside none, keys each", between=(0, 1000))
    reach: float = param(0.5, "share of the distance to the nearest that is no such fact", between=(0.0, 1.0))

    @override
    def shares(self) -> tuple[float, float]:
        return 0.5, 0.5

    @override
    def teach(self, taught: Taught, facts: Sequence[Fact], past: Past) -> Past:
        layer = self.chosen(taught)[0]
        inside = [name for name in widths(taught.module) if layer.startswith(f"{name}.")]
        if not inside:
            raise ModelError(f"grace: {layer} must lie in a part of a block that a codebook can stand behind, does not. Take memit.")
        place = inside[-1]
        part = taught.module.get_submodule(place)
        rows = self.rows(taught, facts)
        keys = _given(taught, rows, part)
        values = self._values(taught, rows, part, keys)
        known = taught.asides.get(place)
        if known is not None:
            keys, values = torch.cat([known["keys"], keys]), torch.cat([known["values"], values])
        taught.asides[place] = {"keys": keys, "values": values, "radii": self.reach * self._free(taught, part, keys)}
        return Past(past.count + len(facts), past.sums)

    def _values(self, taught: Taught, rows: Rows, part: nn.Module, keys: torch.Tensor) -> torch.Tensor:
        """What to add (keys, width) so that the targets follow."""
        size = keys.norm(dim=1).mean().clamp(min=1e-6) / keys.shape[1] ** 0.5
        values = torch.zeros_like(keys).requires_grad_(True)
        optimizer = torch.optim.Adam([values], lr=self.rate)
        for _ in range(self.steps):
            optimizer.zero_grad()
            start = 0
            for some in parts(rows):
                mine = values[start : start + int(some.answering.sum())] * size
                hook = part.register_forward_hook(partial(_added, some.answering, mine))
                try:
                    with torch.enable_grad():
                        answer_loss(taught.logits(some), some).sum().backward()
                finally:
                    hook.remove()
                start += len(mine)
            optimizer.step()
        return (values * size).detach()

    def _free(self, taught: Taught, part: nn.Module, keys: torch.Tensor) -> torch.Tensor:
        """The distance (keys,) of each key to the nearest of the others, and of all that the part gives on protected text."""
        apart = torch.cdist(keys, keys)
        nearest = (apart + torch.diag(torch.full((len(keys),), float("inf")))).amin(1)
        met: list[torch.Tensor] = []
        hook = part.register_forward_hook(lambda module, args, output: met.append(first(output).detach().flatten(0, -2).float()))
        try:
            with torch.no_grad():
                for some in taught.sequences.split(8):
                    taught.module(input_ids=some, use_cache=False)
                    nearest = torch.minimum(nearest, torch.cdist(keys, met.pop()).amin(1))
        finally:
            hook.remove()
        return nearest


def _given(taught: Taught, rows: Rows, part: nn.Module) -> torch.Tensor:
    """What a part gives (rows, width) wherever a target's token is to follow, row by row, without what stands beside it already."""
    found: list[torch.Tensor] = []
    met: list[torch.Tensor] = []
    hook = part.register_forward_hook(lambda module, args, output: met.append(first(output).detach().float()))
    try:
        with torch.no_grad():
            for some in parts(rows):
                taught.logits(some)
                found.append(met.pop()[some.answering])
    finally:
        hook.remove()
    return torch.cat(found)


def _added(places: torch.Tensor, values: torch.Tensor, part: nn.Module, args: tuple, output: Any) -> Any:
    stream = first(output)
    stream = stream.index_put(tuple(places.nonzero().T), values.to(stream.dtype), accumulate=True)
    return (stream, *output[1:]) if isinstance(output, tuple) else stream
