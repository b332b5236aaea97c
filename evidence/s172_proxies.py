"""S172, EMQ: a proxy evolved on judged plans ranks plans it has not seen better than the proxies people made.

The paper evolves expressions over weights, gradients and activations on a table of quantized accuracies of image classifiers; here they are made
of the figures of the harm table, and outcomes are measured: random plans of bits that all spend what three bits everywhere do, with
their divergence on validation sequences. Half of the plans are evolved on, half are held out. Curvature is not measured, so that
the hand-made proxies are predicted divergence, change of the weights, and change per weight. Files are those of the plans that the integer
program chooses by each proxy; the claim is about ranks alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from scipy.stats import spearmanr

from allocation import Outcome, Scene, result, row, scenes, show
from common import Claim, Setting
from modicum.allocate.integer_program import integer_program
from modicum.allocate.proxies import Proxy, evolve
from modicum.allocate.random import random
from modicum.core.plan import Picks

# Plans to evolve on, and as many to rank.
PLANS, GENERATIONS = 24, 40
HANDMADE = {"harm": "harm", "distance": "distance", "distance per weight": ("/", "distance", "values")}
CLAIM = Claim(
    id="S172",
    system="EMQ",
    claim="Builds a table of bit configurations with measured outcomes, evolves proxy expressions over model statistics with "
    "diversity-prompting selection, and the evolved proxy's rank correlation beats hand-made proxies on held-out configurations.",
    metric="rank correlation (Spearman) with the real KL of 24 held-out plans at three bits per weight, of the evolved proxy minus that of the best "
    "hand-made one",
    margin=2.0,
    setting=Setting(
        method="evolved", baselines=("harm", "distance", "distance per weight"), samples=8, tokens=128, test_samples=16, extra_bytes=0.001
    ),
)


def main() -> None:
    names = (CLAIM.setting.method, *CLAIM.setting.baselines)
    found: dict[str, list[Outcome]] = {name: [] for name in names}
    ranks: dict[str, list[float]] = {name: [] for name in names}
    texts = []
    for scene in scenes(CLAIM.setting):
        plans = [random(scene.table, scene.limits(), seed=1000 * scene.seed + number) for number in range(2 * PLANS)]
        real = [float(scene.validation(picks, scene.validation.samples).mean()) for picks in plans]
        evolved = evolve(scene.table, plans[:PLANS], real[:PLANS], seed=scene.seed, generations=GENERATIONS)
        texts.append(str(evolved))
        for name in names:
            proxy = evolved if name == CLAIM.setting.method else Proxy(HANDMADE[name], 0.0)
            ranks[name].append(ranked(scene, proxy, plans[PLANS:], real[PLANS:]))
            found[name].append(scene.outcome(integer_program(proxy.priced(scene.table), scene.limits())))
    baselines = sorted(CLAIM.setting.baselines, key=lambda name: -statistics.mean(ranks[name]))
    gains = [a - b for a, b in zip(ranks[CLAIM.setting.method], ranks[baselines[0]])]
    rows = [row(name, found[name]) for name in (CLAIM.setting.method, *baselines)]
    show(result(CLAIM, rows, gains, {"rank correlation": ranks, "evolved": texts}, {}))


def ranked(scene: Scene, proxy: Proxy, plans: Sequence[Picks], real: Sequence[float]) -> float:
    """Spearman's correlation of a proxy with real divergences."""
    return float(spearmanr(proxy.of(scene.table, plans), real).statistic)


if __name__ == "__main__":
    main()
