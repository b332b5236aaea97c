"""S137, bisection over layers ranked by harm and measured interactions, against the ranking by the Hessian alone.

The paper asks for an accuracy and counts bits and latency of convolutional networks and BERT, with traces of the Hessian; here it is a
divergence on validation sequences and bytes of a small language model, and the second-order harm of each layer. The tolerance, half of what
three bits everywhere cause, lies between two uniform plans, so that the order decides which layers go down. Only pairs of neighbours with
the largest harms are measured. Both rankings are bisected by the same rule.
"""

from __future__ import annotations

from allocation import WIDTH, Found, Scene, by_seed, joined, result, row, show, told
from common import Claim, Setting
from kept import Kept
from modicum.allocate._cache import Cached
from modicum.allocate.bisection import within

# Of the divergence of the uniform plan, what is tolerated.
SHARE = 0.5
PAIRS = {"bisection": 12, "bisection pairs=0": 0}
CLAIM = Claim(
    id="S137",
    system="Inter-layer-augmented Hessian mixed-precision PTQ",
    claim="Rank layers by Hessian trace times quantization error plus measured pairwise interactions, bisect over the ordering to the cheapest "
    "configuration within an accuracy tolerance; it must use fewer bits than Hessian-only ordering.",
    metric="share of the bytes that the ranking with interactions saves of those without, within half the validation KL of three bits everywhere",
    margin=2.0,
    setting=Setting(method="bisection", baselines=("bisection pairs=0",), samples=8, tokens=128, test_samples=16),
)


def seen(scene: Scene) -> Found:
    """The plan of each ranking, with the tolerance and what each diverges."""
    judge = Cached(scene.validation)
    diverges = lambda picks: float(judge(picks, judge.samples).mean())
    tolerance = SHARE * diverges(scene.everywhere(WIDTH))
    plans = {name: within(scene.table, judge, tolerance, pairs=pairs) for name, pairs in PAIRS.items()}
    figures = {"tolerance": tolerance, "validation KL": {name: diverges(picks) for name, picks in plans.items()}}
    return {name: scene.outcome(picks) for name, picks in plans.items()}, figures


def main() -> None:
    kept = Kept.of(CLAIM.id)
    found = by_seed(kept, CLAIM.setting, seen)
    outcomes, tolerances = joined(found), told(found, "tolerance")
    validation = {name: [each[name] for each in told(found, "validation KL")] for name in PAIRS}
    gains = [1 - a.bytes / b.bytes for a, b in zip(*outcomes.values())]
    fine = all(kl <= tolerance for values in validation.values() for kl, tolerance in zip(values, tolerances))
    figures = {"tolerance": tolerances, "validation KL": validation}
    rows = [row(name, outcomes[name]) for name in PAIRS]
    show(result(CLAIM, kept, rows, gains, figures, {"within the tolerance": fine}))


if __name__ == "__main__":
    main()
