"""Fine-tuning on the facts alone, free or within a box: the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.settings import param
from modicum.edit.editor import Editor, Past
from modicum.edit.facts import Fact
from modicum.edit.taught import Taught, answer_loss, parts


@dataclass(frozen=True, kw_only=True)
class Finetune(Editor):
    """``steps`` of Adam on the change of each layer, all facts in every step; with a ``limit`` no entry changes by more than that.

    Constrained fine-tuning is the one with a limit. *Needs and cost:* a forward and backward pass of the facts per step.
    """

    named: ClassVar[bool] = True

    steps: int = param(25, "updates", between=(1, 100_000))
    rate: float = param(1e-3, "learning rate", between=(1e-9, 10.0))
    limit: float = param(0.0, "most that an entry of a weight may change, no bound where 0", between=(0.0, 1e3))
    contexts: int = param(0, "texts before each fact beside none", between=(0, 1000))

    @override
    def teach(self, taught: Taught, facts: Sequence[Fact], past: Past) -> Past:
        names, rows = self.chosen(taught), self.rows(taught, facts)
        shapes = {name: (len(self._bias(taught, name)), taught.covariance(name).shape[0]) for name in names}
        before = dict(taught.changes)
        own = {name: torch.zeros(shape).requires_grad_(True) for name, shape in shapes.items()}
        optimizer = torch.optim.Adam(own.values(), lr=self.rate)
        for _ in range(self.steps):
            optimizer.zero_grad()
            for part in parts(rows):
                taught.changes = {**before, **{name: before[name] + each if name in before else each for name, each in own.items()}}
                with torch.enable_grad():
                    (answer_loss(taught.logits(part), part).sum() / len(rows)).backward()
            optimizer.step()
            if self.limit:
                with torch.no_grad():
                    for each in own.values():
                        each.clamp_(-self.limit, self.limit)
        taught.changes = before
        taught.add({name: each.detach() for name, each in own.items()})
        return Past(past.count + len(facts), past.sums)

    def _bias(self, taught: Taught, name: str) -> torch.Tensor:
        """What a layer gives (rows,) for no input: its width is all that is asked."""
        columns = taught.covariance(name).shape[0]
        with torch.no_grad():
            found: torch.Tensor = taught.layers[name](torch.zeros(columns))
        return found
