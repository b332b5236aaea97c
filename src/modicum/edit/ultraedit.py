"""UltraEdit: gradients as wanted changes of what a layer gives, written to its inputs by one regularized least-squares solve."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.edit.editor import Editor, Past
from modicum.edit.facts import Fact
from modicum.edit.located import protecting
from modicum.edit.normal_equations import NormalEquations
from modicum.edit.normalised import Statistics
from modicum.edit.rows import Rows, encoded
from modicum.edit.taught import Taught, answer_loss, felt


@dataclass(frozen=True, kw_only=True)
class Ultraedit(Editor):
    """No subject, no training and no memory of facts: one forward and backward pass of a batch, and a solve per layer.

    At every place whose next token is the target's, and at the subject's last token, a layer has an input ``k`` and a gradient ``g`` of the loss.
    The wanted change of its output is ``v = -rate · g`` of gradients in units of their mean norm over all facts so far (``normal=size``), or as in
    the paper ``v = -rate · (k · k̂) ĝ`` with each feature of ``k`` and ``g`` normalised by its mean and deviation over all facts so far
    (``normal=features``). The change solves ``D = (Σ v kᵀ)(Σ k kᵀ + C)⁻¹``, where ``C`` protects ordinary text, keys of earlier batches and,
    by a ridge, every direction. Several ``rounds`` of it take what the last left undone.

    *Needs and cost:* per round a forward and backward pass of the batch and columns³ per layer; memory does not depend on the number of facts.
    *Reduces to* the paper's own update at ``normal=features rounds=1 contexts=0 text=1e-6 guards=0``.
    *Differs from the paper:* protects the second moment of text, takes rounds, and contexts before each fact.
    """

    paper: ClassVar[Paper | None] = Paper(
        title="UltraEdit: Training-, Subject-, and Memory-Free Lifelong Editing in Large Language Models",
        arxiv="2505.14679",
        year=2025,
        authors="Xiaojie Gu and Ziying Huang and Jia-Chen Gu and Kai Zhang",
    )

    rate: float = param(6.0, "length of a step", between=(0.0, 1e6))
    rounds: int = param(25, "times that the batch is gone over; fewer where every target is reached", between=(1, 1000))
    text: float = param(600.0, "tokens of ordinary text that are protected beside the facts", between=(1e-6, 1e12))
    momentum: float = param(0.0, "share of the last round's change that is taken again", between=(0.0, 0.99))
    ridge: float = param(1e-4, "share of the mean square of the inputs that protects every direction", between=(1e-9, 1e6))
    contexts: int = param(1, "texts before each fact beside none, other ones in each round", between=(0, 1000))
    guards: int = param(
        1, "prompts beside each fact, with the letters of its subject shuffled, whose keys are to see no change", between=(0, 100)
    )
    enough: float = param(0.02, "loss of a fact below which it asks for nothing more", between=(0.0, 100.0))
    outputs: float = param(
        0.0,
        "damping by which outputs are protected as strongly as text feels them, a share of the mean; not at all where 0",
        between=(0.0, 1e6),
    )
    normal: str = param("size", "how gradients are normalised", choices=("size", "features"))

    @override
    def teach(self, taught: Taught, facts: Sequence[Fact], past: Past) -> Past:
        names = self.chosen(taught)
        covariances = taught.covariances(names)
        sums = dict(past.sums)
        changes = dict[str, torch.Tensor]()
        guarded = self._guarded(taught, facts, names)
        turned = {name: self._turned(each) for name, each in felt(taught, names).items()} if self.outputs else {}
        for turn in range(self.rounds):
            rows = self.rows(taught, facts, turn)
            seen, losses = taught.seen(rows, names, _places, self._missing)
            if self.rounds > 1 and float(losses.max()) <= 0:
                break
            for name in names:
                keys, gradients = seen[name].keys, seen[name].gradients
                gradients = gradients @ turned[name] if turned else gradients
                statistics = sums.get(f"{name} normal") or Statistics()
                if turn == 0:
                    statistics = sums[f"{name} normal"] = statistics.with_(keys, gradients)
                known = sums.setdefault(name, NormalEquations(gradients.shape[1], keys.shape[1]))
                new = NormalEquations(gradients.shape[1], keys.shape[1])
                new.add(keys, self._values(statistics, keys, gradients), 1 / (1 + self.contexts))
                found = new.solve(protecting(covariances[name], self.text, self.ridge) + known.gram + guarded[name])
                changes[name] = found + self.momentum * changes[name] if name in changes else found
            taught.add(changes)
        for name in names:
            sums[name].add(seen[name].keys, torch.zeros_like(seen[name].gradients), 1 / (1 + self.contexts))
        return Past(past.count + len(facts), sums)

    def _missing(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        """What each row's loss (rows,) has more than enough."""
        return (answer_loss(logits, rows) - self.enough).clamp(min=0)

    def _turned(self, moment: torch.Tensor) -> torch.Tensor:
        """The inverse (rows, rows) of what outputs are felt by, of mean one."""
        size = moment.diagonal().mean().clamp(min=1e-30)
        found = torch.linalg.inv((moment / size).double() + self.outputs * torch.eye(len(moment), dtype=torch.float64))
        return (found / found.diagonal().mean()).float()

    def _guarded(self, taught: Taught, facts: Sequence[Fact], names: list[str]) -> dict[str, torch.Tensor]:
        """Second moments (columns, columns) of what layers see at the same places of prompts about something else."""
        sums = {name: NormalEquations(1, taught.covariance(name).shape[0]) for name in names}
        if guards := [guard for fact in facts if fact.subject for guard in _guards(fact, self.guards)]:
            seen, _ = taught.seen(encoded(taught.tokenizer, guards, taught.longest), names, _given, answer_loss)
            for name in names:
                sums[name].add(seen[name].keys, torch.zeros(len(seen[name].keys), 1))
        return {name: found.gram for name, found in sums.items()}

    def _values(self, statistics: Statistics, keys: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        if self.normal == "size":
            return -self.rate * gradients / max(statistics.size, 1e-30)
        key, gradient = (statistics.keys.normalised(keys), statistics.gradients.normalised(gradients))
        return -self.rate * (keys * key).sum(1, keepdim=True) * gradient


def _places(rows: Rows) -> torch.Tensor:
    return rows.answering | rows.ending


def _given(rows: Rows) -> torch.Tensor:
    """The subject's last token, and the prompt's."""
    first = rows.answering & (rows.answering.cumsum(1) == 1)
    return first | rows.ending


def _guards(fact: Fact, count: int) -> list[Fact]:
    """The fact's prompt about somebody else: a name of the same letters in another order."""
    found = []
    for number in range(count):
        chance = random.Random(f"{number} {fact.subject}")
        other = "".join(chance.sample(fact.subject, len(fact.subject)))
        found.append(Fact(fact.prompt.replace(fact.subject, other), fact.target, other, where=fact.where))
    return found
