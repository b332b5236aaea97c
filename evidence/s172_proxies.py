"""S172, EMQ: a proxy evolved on judged plans ranks plans it has not seen better than the proxies people made.

The paper evolves expressions over weights, gradients and activations on a table of quantized accuracies of image classifiers; here they are made
of the figures of the harm table, and outcomes are measured: random plans of bits that all spend what three bits everywhere do, with
their divergence on validation sequences. Half of the plans are evolved on, half are held out. The hand-made proxies are those that the paper
names: bytes, change of the weights, and that change weighed by the Hessian's largest eigenvalue (HAWQ) and by its trace (HAWQ-V2). The harm
measured here, which none of them knows, is kept from the evolution too; what it ranks by itself, and what is evolved with it, is shown
beside. Files are those of the plans that the integer program chooses by each proxy; the claim is about ranks alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from scipy.stats import spearmanr

from allocation import Found, Scene, by_seed, joined, row
from common import Claim, Setting, result, show
from kept import Kept
from modicum.allocate.integer_program import integer_program
from modicum.allocate.proxies import Expression, Proxy, evolve
from modicum.allocate.random import random
from modicum.core.plan import Picks

# Plans to evolve on, and as many to rank.
PLANS, GENERATIONS = 24, 40
HANDMADE: dict[str, Expression] = {
    "bytes": ("-", "bytes", ("+", "bytes", "bytes")),
    "distance": "distance",
    "distance by eigenvalue": ("*", "eigenvalue", "distance"),
    "distance by trace": ("*", "trace", "distance"),
    "harm": "harm",
}
EVOLVED = {"evolved": False, "evolved with harm": True}
CLAIM = Claim(
    id="S172",
    system="EMQ",
    claim="Builds a table of bit configurations with measured outcomes, evolves proxy expressions over model statistics with "
    "diversity-prompting selection, and the evolved proxy's rank correlation beats hand-made proxies on held-out configurations.",
    metric="rank correlation (Spearman) with the real KL of 24 held-out plans at three bits per weight, of the evolved proxy minus that of the best "
    "hand-made one",
    margin=2.0,
    setting=Setting(
        method="evolved",
        baselines=("bytes", "distance", "distance by eigenvalue", "distance by trace"),
        seeds=(0, 1, 2, 3, 4, 5, 6, 7),
        samples=8,
        tokens=128,
        test_samples=16,
        extra_bytes=0.001,
        beside=("harm", "evolved with harm"),
    ),
)


def main() -> None:
    setting, kept = CLAIM.setting, Kept.of(CLAIM.id)
    found = by_seed(kept, setting, seen, curved=True)
    outcomes, ranks = joined(found), {name: [each["ranks"][name] for _, each in found] for name in found[0][1]["ranks"]}
    best = sorted(setting.baselines, key=lambda name: -statistics.mean(ranks[name]))
    gains = [a - b for a, b in zip(ranks[setting.method], ranks[best[0]])]
    rows = [row(name, outcomes[name]) for name in (setting.method, *best, *setting.beside)]
    texts = {name: [each["evolved"][name] for _, each in found] for name in EVOLVED}
    show(result(CLAIM, kept, rows, gains, {"rank correlation": ranks, "evolved": texts}, {}))


def seen(scene: Scene) -> Found:
    """How each proxy ranks the plans held out, and what the integer program makes of it."""
    plans = [random(scene.table, scene.limits(), seed=1000 * scene.seed + number) for number in range(2 * PLANS)]
    real = [float(scene.validation(picks, scene.validation.samples).mean()) for picks in plans]
    known = {True: scene.table, False: Proxy(("-", "harm", "harm"), 0.0).priced(scene.table)}
    proxies = {name: Proxy(expression, 0.0) for name, expression in HANDMADE.items()} | {
        name: evolve(known[knows], plans[:PLANS], real[:PLANS], seed=scene.seed, generations=GENERATIONS) for name, knows in EVOLVED.items()
    }
    outcomes = {name: scene.outcome(integer_program(proxy.priced(scene.table), scene.limits())) for name, proxy in proxies.items()}
    ranks = {name: ranked(scene, proxy, plans[PLANS:], real[PLANS:]) for name, proxy in proxies.items()}
    return outcomes, {"ranks": ranks, "evolved": {name: str(proxies[name]) for name in EVOLVED}}


def ranked(scene: Scene, proxy: Proxy, plans: Sequence[Picks], real: Sequence[float]) -> float:
    """Spearman's correlation of a proxy with real divergences."""
    return float(spearmanr(proxy.of(scene.table, plans), real).statistic)


if __name__ == "__main__":
    main()
