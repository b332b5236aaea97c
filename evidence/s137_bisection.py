"""S137, bisection over layers ranked by harm and measured interactions, against the ranking by the Hessian alone.

The paper asks for an accuracy and counts bits and latency of convolutional networks and BERT, with traces of the Hessian; here it is a
divergence on validation sequences and bytes of two small language models, and the second-order harm of each layer. Where layers do not
interact there is nothing to see, so interactions are measured first: what two neighbours cause together at two bits, minus what each causes
alone, over the geometric mean of the two. Tolerances are shares of what two bits everywhere cause, where interactions are strongest; all
neighbours are measured, on all validation sequences. Both rankings are bisected by the same rule.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from allocation import KEPT, Found, Scene, by_seed, row
from common import Claim, Setting, result, show, verdict
from kept import Kept
from modicum.allocate._cache import Cached
from modicum.allocate.bisection import within
from scenes.second import second

MENU = "int2,int3,int4"
# The width at which interactions are told; of its divergence, what is tolerated, and the tolerance whose plans are told.
NARROW, SHARES, TOLD = 2, (0.2, 0.4, 0.6), 0.4
# Sequences on which interactions are told.
SEEN = 4
PAIRS = {"bisection": 1000, "bisection pairs=0": 0}
CLAIM = Claim(
    id="S137",
    system="Inter-layer-augmented Hessian mixed-precision PTQ",
    claim="Rank layers by Hessian trace times quantization error plus measured pairwise interactions, bisect over the ordering to the cheapest "
    "configuration within an accuracy tolerance; it must use fewer bits than Hessian-only ordering.",
    metric="share of the bytes that the ranking with interactions saves of those without, within 0.2, 0.4 and 0.6 of the validation KL of two bits "
    "everywhere, mean over these and over two models",
    margin=2.0,
    setting=Setting(method="bisection", baselines=("bisection pairs=0",), samples=8, tokens=128, test_samples=16),
)


def seen(scene: Scene) -> Found:
    """The plans of both rankings, their bytes at every tolerance, and how neighbours interact."""
    judge = Cached(scene.validation, probe=scene.validation.samples)  # other bits are never the same function: no probe is worth its while
    diverges = lambda picks: float(judge(picks, judge.samples).mean())
    whole = diverges(scene.everywhere(NARROW))
    figures: dict[str, Any] = {"strength": interactions(scene), "bytes": {}, "kept": True}
    outcomes = {}
    for name, pairs in PAIRS.items():
        plans = {share: within(scene.table, judge, share * whole, pairs=pairs, share=1.0) for share in SHARES}
        figures["bytes"][name] = [scene.table.cost(plan) for plan in plans.values()]
        figures["kept"] &= all(diverges(plan) <= share * whole for share, plan in plans.items())
        outcomes[name] = scene.outcome(plans[TOLD])
    return outcomes, figures


def interactions(scene: Scene) -> list[list[float]]:
    """Of each two neighbours: strength, its standard error over sequences, and the nats that both cause together beyond what each does."""
    whole, narrow = scene.everywhere(KEPT), scene.everywhere(NARROW)
    caused = lambda *sites: scene.validation(whole | {site: narrow[site] for site in sites}, SEEN)
    alone = {site: caused(site) for site in scene.table.choices}
    found = []
    for one, other in itertools.pairwise(scene.table.choices):
        beyond = caused(one, other) - alone[one] - alone[other]
        scale = math.sqrt(max(alone[one].mean() * alone[other].mean(), 1e-300))
        found.append([float(beyond.mean() / scale), float(beyond.std(ddof=1) / math.sqrt(len(beyond)) / scale), float(beyond.mean())])
    return found


def saved(found: Sequence[Found]) -> list[float]:
    """Share of bytes saved, the mean over tolerances, seed by seed."""
    pairs = [figures["bytes"].values() for _, figures in found]
    return [statistics.mean(1 - a / b for a, b in zip(*both)) for both in pairs]


def by_model(model: str, found: Sequence[Found]) -> dict[str, Any]:
    """Figures of one model."""
    strengths = np.array([figures["strength"] for _, figures in found])
    clear = np.abs(strengths[..., 0]) > CLAIM.margin * strengths[..., 1]
    gains = verdict(saved(found), CLAIM.margin)
    return {
        f"{model}, pairs of neighbours": int(strengths.shape[1]),
        f"{model}, median size of their interaction": float(np.median(np.abs(strengths[..., 0]))),
        f"{model}, least and largest": [float(strengths[..., 0].min()), float(strengths[..., 0].max())],
        f"{model}, share beyond two standard errors": float(clear.mean()),
        f"{model}, bytes saved and its standard error": [gains["mean"], gains["standard_error"]],
        f"{model}, bytes saved by seed": saved(found),
    }


def main() -> None:
    kept, made = Kept.of(CLAIM.id), second()
    found = {
        name: by_seed(kept, CLAIM.setting, seen, MENU, model=model)
        for name, model in {"demo": "demo", "second model": str(made.folder)}.items()
    }
    kept.seconds += made.seconds
    gains = [statistics.mean(each) for each in zip(*map(saved, found.values()))]
    figures = {key: value for name, seeds in found.items() for key, value in by_model(name, seeds).items()}
    rows = [row(name, [outcomes[name] for outcomes, _ in found["demo"]]) for name in PAIRS]
    fine = all(each["kept"] for seeds in found.values() for _, each in seeds)
    show(result(CLAIM, kept, rows, gains, figures, {"within the tolerance": fine}))


if __name__ == "__main__":
    main()
