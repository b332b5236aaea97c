"""S163, SimQ-NAS: structure and bits searched at once dominate structure first and bits afterwards, at equal evaluations.

The paper searches a trained super-network's depth, widths and heads together with bits per layer; here genes are cuts of heads and channels
of the given model, and its weights' bits. The baseline searches cuts at eight bits with half of the evaluations, takes the middle of that
front, and searches its bits with what is left; all it judged counts, and of the joint search as many plans as it judged. Both use the same
search and predictor. One measurement serves all seeds, which are those of the searches alone. What counts is the area that a front dominates
in size, as a share of that of eight bits everywhere, and log KL, below eight bits everywhere and one nat, on test sequences.
Another structure than the middle one would leave the baseline other bits to search; one alone is tried.
"""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from allocation import Outcome, Scene, hypervolume, row
from common import Claim, Setting, result, show
from kept import Kept
from modicum.allocate._family import Judge
from modicum.allocate.nsga2 import FIRST, ROUND, front
from modicum.core.plan import Choice, Picks, Table

MENU = "int2,int3,int4,int8,ziplm keep=0.75"
# Rounds of the joint search, and of the first half of the other.
ROUNDS, HALF = 4, 1
WHOLE = 8
CLAIM = Claim(
    id="S163",
    system="SimQ-NAS",
    claim="Evolutionary multi-objective search over joint genes (structure plus per-layer bits) with light predictors refit each round; its Pareto "
    "front dominates search-then-quantize at equal evaluations.",
    metric="hypervolume (size, log KL) of the joint search's front minus that of structure first, then bits, at equal numbers of judged plans; "
    "one measurement, seeds are those of the search; perplexity, KL and bytes are of each front's best plan within three bits everywhere",
    margin=2.0,
    setting=Setting(method="joint", baselines=("structure, then bits",), samples=8, tokens=128, test_samples=16),
)


Judged = list[tuple[Picks, float]]
"""Plans and their divergences on the validation sequences, in the order they were judged."""


@dataclass
class Narrow:
    """A judge of plans on some of a table's choices, which notes what it judged as plans of the whole table."""

    judge: Judge
    table: Table
    places: dict[str, list[int]]
    judged: Judged = field(default_factory=list)

    @classmethod
    def of(cls, scene: Scene, stays: Callable[[str, Choice], bool]) -> Narrow:
        """The choices that stay."""
        choices = scene.table.choices
        places = {site: [place for place, choice in enumerate(found) if stays(site, choice)] for site, found in choices.items()}
        return cls(scene.validation, replace(scene.table, choices=_only(scene.table, places)), places)

    @property
    def samples(self) -> int:
        """Sequences there are."""
        return self.judge.samples

    def many(self, candidates: Sequence[Picks], samples: int) -> list[np.ndarray]:
        """Judge several."""
        wide = [{site: self.places[site][place] for site, place in picks.items()} for picks in candidates]
        outcomes = self.judge.many(wide, samples)
        self.judged += [(picks, float(outcome.mean())) for picks, outcome in zip(wide, outcomes)]
        return outcomes

    def __call__(self, picks: Picks, samples: int) -> np.ndarray:
        """Judge one."""
        return self.many([picks], samples)[0]

    def searched(self, seed: int, rounds: int) -> Judged:
        """What a search judged."""
        front(self.table, self, seed=seed, rounds=rounds)
        return self.judged


def _only(table: Table, places: dict[str, list[int]]) -> dict[str, list[Choice]]:
    """Choices that stay, each standing under what stays of its parent."""
    found = {site: [table.choices[site][place] for place in kept] for site, kept in places.items()}
    above = {site: {choice.option for choice in found[parent]} for site, parent in table.parents.items()}
    for site, options in above.items():
        standing = [place for place in places[site] if options & set(table.choices[site][place].given)]
        places[site], found[site] = standing, [table.choices[site][place] for place in standing]
    return found


def joint(scene: Scene, seed: int) -> Judged:
    """Plans judged in a search of everything."""
    return Narrow.of(scene, lambda site, choice: True).searched(seed, ROUNDS)


def halves(scene: Scene, seed: int) -> Judged:
    """Plans judged in a search of cuts, then in one of bits."""
    cuts = scene.table.children
    structure = Narrow.of(scene, lambda site, choice: site in cuts or f"bits={WHOLE}" in choice.option).searched(seed, HALF)
    found = undominated(scene, structure)
    middle = found[len(found) // 2]
    taken = {site: scene.table.choices[site][middle[site]] for site in cuts}
    left = FIRST + ROUND * ROUNDS - len(structure)
    bits = Narrow.of(scene, lambda site, choice: site not in cuts or choice == taken[site])
    return [*structure, *bits.searched(seed, math.ceil((left - FIRST) / ROUND))]


def undominated(scene: Scene, judged: Judged) -> list[Picks]:
    """Plans of which none judged spends no more and diverges no more, from the one that spends least."""
    found: list[Picks] = []
    least = math.inf
    for picks, kl in sorted(judged, key=lambda known: (scene.table.cost(known[0]), known[1])):
        if kl < least:
            found.append(picks)
            least = kl
    return found


def area(scene: Scene, plans: Sequence[Picks]) -> float:
    """Hypervolume on the test sequences."""
    most = scene.table.cost(scene.everywhere(WHOLE))
    points = [(scene.table.cost(picks) / most, math.log(scene.test(picks, scene.test.samples).mean())) for picks in plans]
    return hypervolume(points, (1.0, 0.0))


def best(scene: Scene, plans: Sequence[Picks]) -> Outcome:
    """What the front's best plan within three bits everywhere is; where there is none, its smallest."""
    within = [picks for picks in plans if scene.table.fits(picks, scene.limits())]
    judged = lambda picks: float(scene.validation(picks, scene.validation.samples).mean())
    return scene.outcome(min(within, key=judged) if within else min(plans, key=scene.table.cost))


def main() -> None:
    kept = Kept.of(CLAIM.id)
    with tempfile.TemporaryDirectory() as folder:
        measured = functools.cache(lambda: Scene.measured(CLAIM.setting, 0, Path(folder), MENU))
        found = [kept(f"search {seed}", functools.partial(searched, measured, seed)) for seed in CLAIM.setting.seeds]
    names = (CLAIM.setting.method, *CLAIM.setting.baselines)
    areas = {name: [each["areas"][name] for each in found] for name in names}
    gains = [a - b for a, b in zip(*areas.values())]
    figures = {"hypervolume": areas, "plans judged by each search": [each["count"] for each in found]}
    rows = [row(name, [Outcome.read(each["outcomes"][name]) for each in found]) for name in names]
    show(result(CLAIM, kept, rows, gains, figures, {}))


def searched(measured: Callable[[], Scene], seed: int) -> dict[str, Any]:
    """What one seed's searches found, and how many plans each judged."""
    scene, names = measured(), (CLAIM.setting.method, *CLAIM.setting.baselines)
    judged = [joint(scene, seed), halves(scene, seed)]
    count = min(map(len, judged))
    plans = {name: undominated(scene, known[:count]) for name, known in zip(names, judged)}
    return {
        "count": count,
        "areas": {name: area(scene, found) for name, found in plans.items()},
        "outcomes": {name: best(scene, found).plain() for name, found in plans.items()},
    }


if __name__ == "__main__":
    main()
