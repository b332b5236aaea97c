"""MEND: small networks, trained here, turn what one fact does to a weight into what the weight should become."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.edit.editor import Editor, Past, context
from modicum.edit.facts import Fact
from modicum.edit.rows import encoded
from modicum.edit.taught import Taught, answer_loss
from modicum.train.editors import Factors


@dataclass(frozen=True, kw_only=True)
class Mend(Editor):
    """For each layer a network takes inputs and output gradients of a fact, and gives factors of the layer's change: one pass per fact.

    It is trained on facts like those to be taught: the same prompts about names of the same letters in another order, with targets exchanged. Each
    update asks for the target after the prompt and after a text before it, and for little divergence on ordinary text: ``edit`` times
    the first plus the second. Changes of facts that are taught together are added.

    *Needs and cost:* ``steps`` updates of two forward and backward passes before the first fact; a subject in each fact.
    *Differs from the paper:* facts to train on are made of the given ones rather than a corpus.
    """

    paper: ClassVar[Paper | None] = Paper(
        title="Fast Model Editing at Scale",
        arxiv="2110.11309",
        year=2021,
        authors="Eric Mitchell and Charles Lin and Antoine Bosselut and Chelsea Finn and Christopher D. Manning",
    )

    steps: int = param(150, "updates of the networks", between=(1, 10**6))
    rate: float = param(3e-3, "learning rate of the networks", between=(1e-9, 10.0))
    rank: int = param(32, "width between the two layers of a network", between=(1, 65536))
    edit: float = param(0.3, "weight of the facts beside that of ordinary text", between=(1e-6, 1e6))
    start: float = param(0.5, "length of a change at first, as a share of the layer's mean output", between=(1e-9, 1e6))
    contexts: int = param(1, "texts before each fact beside none", between=(0, 1000))

    @override
    def teach(self, taught: Taught, facts: Sequence[Fact], past: Past) -> Past:
        names, sums = self.chosen(taught), dict(past.sums)
        if "networks" not in sums:
            sums["networks"] = self._trained(taught, facts, names)
        written = [self._written(taught, sums["networks"], fact, names) for fact in facts]
        with torch.no_grad():
            taught.add({name: torch.stack([left.T @ right for left, right in (each[name] for each in written)]).sum(0) for name in names})
        return Past(past.count + len(facts), sums)

    def _written(self, taught: Taught, networks: Networks, fact: Fact, names: list[str]) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
        seen, _ = taught.seen(encoded(taught.tokenizer, [fact], taught.longest), names, lambda rows: rows.answering, answer_loss)
        return networks.write({name: Factors(each.keys, each.gradients) for name, each in seen.items()})

    def _trained(self, taught: Taught, facts: Sequence[Fact], names: list[str]) -> Networks:
        chance = random.Random(repr(sorted((fact.prompt, fact.target) for fact in facts)))
        networks = Networks(taught, names, self.rank, self.start, chance.getrandbits(31))
        optimizer = torch.optim.Adam(networks.parameters(), lr=self.rate)
        before = dict(taught.changes)
        texts = taught.sequences[:, : min(64, taught.sequences.shape[1])]
        for step in range(self.steps):
            fact = alike(chance.choice(facts), facts, chance)
            some = texts[[chance.randrange(len(texts)) for _ in range(4)]]
            with torch.enable_grad():
                written = self._written(taught, networks, fact, names)
                with torch.no_grad():
                    old = taught.module(input_ids=some, use_cache=False).logits.float().log_softmax(-1)
                taught.changes = {
                    name: before[name] + left.T @ right if name in before else left.T @ right for name, (left, right) in written.items()
                }
                rows = encoded(
                    taught.tokenizer, [fact] * (1 + self.contexts), taught.longest, before=["", *context(taught, fact, step, self.contexts)]
                )
                reached = answer_loss(taught.logits(rows), rows).mean()
                new = taught.module(input_ids=some, use_cache=False).logits.float().log_softmax(-1)
                value = self.edit * reached + (old.exp() * (old - new)).sum(-1).mean()
                optimizer.zero_grad()
                value.backward()
            taught.changes = before
            torch.nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
            optimizer.step()
        return networks


class Networks(nn.Module):
    """For each layer ``z + up relu(down z)`` of its normalised inputs and gradients ``z``, which begins as a plain gradient step.

    An editor of ``train.editors``: ``write`` gives factors of changes, differentiable in ``parameters``.
    """

    def __init__(self, taught: Taught, names: Sequence[str], rank: int, start: float, seed: int):
        super().__init__()
        chance = torch.Generator().manual_seed(seed)
        self.down, self.up, self.length = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        self.names = {name: name.replace(".", "/") for name in names}
        for name, key in self.names.items():
            columns = taught.covariance(name).shape[0]
            with torch.no_grad():
                rows = len(taught.layers[name](torch.zeros(columns)))
            wide = rows + columns
            self.down[key] = nn.Parameter(torch.randn(rank, wide, generator=chance) / wide**0.5)
            self.up[key] = nn.Parameter(torch.zeros(wide, rank))
            self.length[key] = nn.Parameter(torch.tensor(float(start) / columns**0.5))

    def write(self, seen: Mapping[str, Factors]) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
        """Factors (places, rows) and (places, columns) of each layer's change."""
        found = {}
        for name, each in seen.items():
            key, rows = self.names[name], each.gradients.shape[1]
            unit = lambda x: nn.functional.normalize(x, dim=1) * x.shape[1] ** 0.5
            z = torch.cat([unit(each.gradients), unit(each.inputs)], 1)
            z = z + torch.relu(z @ self.down[key].T) @ self.up[key].T
            found[name] = -self.length[key] * z[:, :rows] / rows**0.5, z[:, rows:] / (z.shape[1] - rows) ** 0.5
        return found


def alike(fact: Fact, facts: Sequence[Fact], chance: random.Random) -> Fact:
    """A fact like one of those given: about a name of the same letters in another order, with a target of another."""
    target = chance.choice(facts).target
    if not fact.subject:
        return replace(fact, target=target, paraphrases=(), neighbours=())
    other = "".join(chance.sample(fact.subject, len(fact.subject)))
    return Fact(fact.prompt.replace(fact.subject, other), target, other, where=fact.where)
