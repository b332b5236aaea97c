"""S406, functional equivalence caching: a search that judges no function twice, against the same search without a memory.

The paper hashes the outputs of programs after a few steps of training, in searches for architectures and algorithms; here the search is one
for bits, candidates are hashed by their divergences on a first sequence, and there is no training. Both searches draw the same candidates.
The search without a cache still knows the score of its parent, which every search does. Counted are sequences judged, since the stages of a
selection look at different numbers of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from allocation import Outcome, result, row, scenes, show
from common import Claim, Setting
from modicum.allocate._cache import Cached
from modicum.allocate._family import Judge
from modicum.allocate.evopress import evopress
from modicum.core.plan import Picks

SEARCH: dict[str, Any] = {"generations": 5, "offspring": 10, "survivors": (4, 2, 1), "shares": (1 / 8, 1 / 4, 1.0)}
# Scores that differ by less are the same: batches of other sizes round differently.
SAME = 1e-6
CLAIM = Claim(
    id="S406",
    system="Functional equivalence caching (FEC)",
    claim="Hash each candidate by its outputs on fixed probe data and seeds, cache evaluations; evolutionary search reaches the same best score "
    "with fewer evaluations and reports the hit rate.",
    metric="share of the judged sequences that the cache saves in an evolutionary search for bits; the best validation KL must be the same to 1e-6",
    margin=2.0,
    setting=Setting(method="evopress with the cache", baselines=("evopress without",), samples=8, tokens=128, test_samples=16),
)


class Forgetful(Cached):
    """Judges everything it is asked, but for what was judged on all sequences in the generation before: a search knows its parent's score."""

    def __init__(self, judge: Judge):
        super().__init__(judge)
        self._last: dict[tuple[tuple[str, int], ...], np.ndarray] = {}

    def many(self, candidates: Sequence[Picks], samples: int) -> list[np.ndarray]:
        """Judge several."""
        known = self._last if samples == self.samples else {}
        fresh = [picks for picks in candidates if _key(picks) not in known]
        self.misses += len(fresh)
        found = known | {_key(picks): outcome for picks, outcome in zip(fresh, self._judged(fresh, samples))}
        if samples == self.samples:
            self._last = {_key(picks): found[_key(picks)] for picks in candidates}
        return [found[_key(picks)] for picks in candidates]


def _key(picks: Picks) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(picks.items()))


def main() -> None:
    found: list[list[Outcome]] = [[], []]
    sequences: list[list[int]] = [[], []]
    best: list[list[float]] = [[], []]
    rates, judged = [], []
    for scene in scenes(CLAIM.setting):
        judges = (Cached(scene.validation, probe=1), Forgetful(scene.validation))
        for place, judge in enumerate(judges):
            picks = evopress(scene.table, scene.limits(), judge, seed=scene.seed, **SEARCH)
            sequences[place].append(judge.sequences)
            best[place].append(float(scene.validation(picks, scene.validation.samples).mean()))
            found[place].append(scene.outcome(picks))
        rates.append(judges[0].rate)
        judged.append([judge.misses for judge in judges])
    gains = [1 - a / b for a, b in zip(*sequences)]
    rows = [row(option, outcomes) for option, outcomes in zip((CLAIM.setting.method, *CLAIM.setting.baselines), found)]
    figures = {
        "hit rate": rates, "sequences judged with the cache": sequences[0], "without": sequences[1],
        "candidates judged, with and without": judged, "best validation KL, with": best[0], "and without": best[1],
    }  # fmt: skip
    same = all(abs(a - b) <= SAME for a, b in zip(*best))
    show(result(CLAIM, rows, gains, figures, {"the same best score": same}))


if __name__ == "__main__":
    main()
