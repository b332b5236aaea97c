"""Bonsai: sub-models that leave some groups out are tried by forwards alone, and a regression tells which group costs what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from modicum.core.method import Need, Paper
from modicum.core.settings import param
from modicum.core.unit import Site, Stats
from modicum.data.splits import Batch, each_row
from modicum.drop._family import CutDropper, from_the_top, group_size
from modicum.drop._trials import Trial
from modicum.models.model import Model
from modicum.sweep import Script
from modicum.sweep.spill import SpillPool


@dataclass(frozen=True, kw_only=True)
class Bonsai(CutDropper):
    """Cut the heads and channels that sub-models do best without, found by forwards of perturbed models and no backward pass.

    A prior ``‖x_j‖ ‖W_:j‖`` says which groups may go at all: the lower part of each site's. Of those ``trials`` sub-models leave out random halves,
    each with its mirror image, which leaves out the other; what each output diverges by is regressed on what was left out (ridge), and the
    groups of least coefficient per weight go. The share is reached in ``rounds``, and each begins where the last ended.

    *Shapes:* divergences (trials,), masks (trials, groups). *Needs and cost:* input norms; ``rounds · trials`` forwards of ``sequences`` sequences,
    one block's weights in memory, nothing kept for a backward. *Reduces to:* the original model at ``keep=1``; the prior at ``trials=0``.
    *Raises:* ``ModelError`` where no coupled cut is found.

    *Differences from the paper:* a sub-model's worth is its divergence from the original instead of a loss on labels; masks come in mirrored
    pairs, so that the mean of a pair tells nothing and its difference all; coefficients are shrunk towards what the prior foretells.

    Example:
        >>> str(Bonsai(keep=0.7, trials=40))
        'bonsai keep=0.7 trials=40'

    """

    paper = Paper("Everybody Prune Now: Structured Pruning of LLMs with only Forward Passes", "2402.05406", 2024, "Dery, Lucio and others")
    needs = frozenset({Need.NORMS})

    trials: int = param(60, "sub-models tried in each round", between=(0, 1_000_000))
    rounds: int = param(2, "steps in which the share is reached", between=(1, 1000))
    sequences: int = param(8, "calibration sequences that sub-models are tried on", between=(1, 1_000_000))
    spare: float = param(2.0, "groups that may go, as a multiple of those that do", between=(1.0, 1e6))

    def rank(self, weight: torch.Tensor, stats: Stats, groups: Sequence[Sequence[int]]) -> torch.Tensor:
        """The prior: squared norm of the consumer's columns times that of their inputs."""
        assert stats.square is not None
        columns = weight.square().sum(0) * stats.square
        return torch.stack([columns[list(group)].sum() for group in groups])

    def survey(
        self, model: Model, script: Script, batches: Sequence[Batch], pool: SpillPool, sites: Sequence[Site], seed: int
    ) -> tuple[dict[str, torch.Tensor], dict[str, Stats]]:  # fmt: skip
        """Scores per weight: infinite for what stays, the round in which it goes for what goes, the prior where nothing is tried."""
        prior, _ = super().survey(model, script, batches, pool, sites, seed)
        sizes = {site.name: group_size(site) for site in sites if site.name in prior}
        prior = {name: value / sizes[name] for name, value in prior.items()}
        if not self.trials:
            return prior, {}
        some = list(batches) if script.whole else [row for batch in batches for row in each_row(batch)][: self.sequences]
        trial = Trial(model, script, some, {site.name: site for site in sites}, pool, seed)
        chance = torch.Generator().manual_seed(seed)
        scores = {name: torch.full_like(value, torch.inf) for name, value in prior.items()}
        gone = {name: torch.zeros(len(value), dtype=torch.bool) for name, value in prior.items()}
        for number in range(self.rounds):
            share = self.keep ** ((number + 1) / self.rounds)
            costs = self._costs(trial, prior, sizes, gone, share, chance)
            kept = from_the_top({name: value.masked_fill(gone[name], -torch.inf) for name, value in costs.items()}, sizes, share)
            for name, groups in kept.items():
                now = torch.ones_like(gone[name])
                now[groups] = False
                scores[name][now & ~gone[name]] = number - self.rounds
                gone[name] |= now
        return scores, {}

    def _costs(
        self, trial: Trial, prior: Mapping[str, torch.Tensor], sizes: Mapping[str, int], gone: Mapping[str, torch.Tensor], share: float,
        chance: torch.Generator,
    ) -> dict[str, torch.Tensor]:  # fmt: skip
        """Cost per weight of each group, infinite of those that may not go."""
        leave = max(0.0, 1 - self.spare * (1 - share))
        safe = from_the_top({name: value.masked_fill(gone[name], -torch.inf) for name, value in prior.items()}, sizes, leave)
        free = {name: ~gone[name] & torch.ones_like(gone[name]).index_fill(0, torch.tensor(safe[name]), False) for name in prior}
        size = torch.cat([torch.full((int(free[name].sum()),), float(sizes[name])) for name in prior])
        expected = torch.cat([prior[name][free[name]] for name in prior]) * size
        masks, lost = [], []
        for half in self._halves(len(expected), chance):
            off = {name: gone[name].clone() for name in prior}
            for name, part in zip(prior, half.split([int(free[name].sum()) for name in prior])):
                off[name][free[name].nonzero()[:, 0]] = part
            masks.append(half)
            lost.append(trial(off))
        costs = _ridge(torch.stack(masks).float(), torch.tensor(lost), expected) / size
        found = {name: torch.full_like(prior[name], torch.inf) for name in prior}
        for name, part in zip(prior, costs.split([int(free[name].sum()) for name in prior])):
            found[name][free[name]] = part
        return found

    def _halves(self, count: int, chance: torch.Generator) -> Iterator[torch.Tensor]:
        """What each sub-model leaves out (groups,), in mirrored pairs."""
        for number in range(self.trials):
            if number % 2 == 0:
                half = torch.rand(count, generator=chance) < 0.5
            yield half if number % 2 == 0 else ~half


def _ridge(masks: torch.Tensor, lost: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Coefficients (groups,) of what was lost (trials,) on what was left out (trials, groups), near a multiple of what is ``expected``."""
    centred, target = masks - masks.mean(0), lost - lost.mean()
    spread = centred * expected  # coefficients relative to what is expected
    scale = (spread.sum(1) @ target / (spread.sum(1).square().sum()).clamp_min(1e-30)).clamp_min(0)
    gram, left = spread @ spread.T, target - scale * spread.sum(1)
    damping = gram.diagonal().mean().clamp_min(1e-30)
    return expected * (scale + spread.T @ torch.linalg.solve(gram + damping * torch.eye(len(gram)), left))
