"""How much layers of the demo interact: what two cause together at two bits, minus what each causes alone, over the geometric mean of the two.

python evidence/interactions.py        # all neighbours, and twenty pairs drawn by chance, on eight sequences: a minute
"""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
from pathlib import Path

import numpy as np

from allocation import KEPT, Scene
from common import Setting

MENU, NARROW, FAR = "int2,int3,int4,int8", 2, 20


def main() -> None:
    """Print each pair whose interaction is beyond two standard errors over sequences, the clearest first, and what all of them are."""
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene.measured(Setting(method="", baselines=(), samples=8, tokens=128, test_samples=16), 0, Path(folder), MENU)
        found = strengths(scene)
    clear = sorted((row for row in found if abs(row[0]) > 2 * row[1]), key=lambda row: -abs(row[0]) / row[1])
    for strength, error, one, other, pair in clear:
        print(f"{strength:+.3f} ± {error:.3f}  alone {one:.4f} and {other:.4f}  {pair}")
    sizes = [abs(strength) for strength, *_ in found]
    print(f"{len(clear)} of {len(found)} beyond two standard errors, median size {statistics.median(sizes):.3f}")


def strengths(scene: Scene) -> list[tuple[float, float, float, float, str]]:
    """Of each pair: strength, its standard error, the divergence that each causes alone, and their names."""
    diverges = lambda picks: scene.validation(picks, scene.validation.samples)
    whole, narrow, sites = scene.everywhere(KEPT), scene.everywhere(NARROW), list(scene.table.choices)
    lowered = lambda *names: whole | {name: narrow[name] for name in names}
    alone: dict[str, np.ndarray] = {site: diverges(lowered(site)) for site in sites}
    print(f"two bits everywhere {diverges(narrow).mean():.4f}, sum of each alone {sum(each.mean() for each in alone.values()):.4f}")
    return [told(diverges(lowered(*pair)), alone, pair) for pair in pairs(sites)]


def pairs(sites: list[str]) -> list[tuple[str, str]]:
    """Neighbours, and pairs drawn by chance."""
    chance = np.random.default_rng(0)
    far = [chance.choice(len(sites), 2, replace=False) for _ in range(FAR)]
    return [*itertools.pairwise(sites), *((sites[one], sites[other]) for one, other in far)]


def told(both: np.ndarray, alone: dict[str, np.ndarray], pair: tuple[str, str]) -> tuple[float, float, float, float, str]:
    """One pair's row."""
    beyond, means = both - alone[pair[0]] - alone[pair[1]], [float(alone[site].mean()) for site in pair]
    scale = math.sqrt(means[0] * means[1])
    return float(beyond.mean()) / scale, float(beyond.std(ddof=1)) / math.sqrt(len(beyond)) / scale, *means, " with ".join(pair)


if __name__ == "__main__":
    main()
