"""S137, bisection over layers ranked by harm and measured interactions, against the ranking by the Hessian alone.

The paper asks for an accuracy and counts bits and latency of convolutional networks and BERT, with traces of the Hessian; here it is a
divergence on validation sequences and bytes of a small language model, and the second-order harm of each layer. The tolerance, half of what
three bits everywhere cause, lies between two uniform plans, so that the order decides which layers go down. Only pairs of neighbours with
the largest harms are measured. Both rankings are bisected by the same rule.
"""

from __future__ import annotations

from allocation import WIDTH, Outcome, result, row, scenes, show
from common import Claim, Setting
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


def main() -> None:
    found: dict[str, list[Outcome]] = {name: [] for name in PAIRS}
    validation: dict[str, list[float]] = {name: [] for name in PAIRS}
    tolerances = []
    for scene in scenes(CLAIM.setting):
        judge = Cached(scene.validation)
        diverges = lambda picks, judge=judge: float(judge(picks, judge.samples).mean())
        tolerances.append(SHARE * diverges(scene.everywhere(WIDTH)))
        for name, pairs in PAIRS.items():
            picks = within(scene.table, judge, tolerances[-1], pairs=pairs)
            validation[name].append(diverges(picks))
            found[name].append(scene.outcome(picks))
    with_pairs, without = (found[name] for name in PAIRS)
    gains = [1 - a.bytes / b.bytes for a, b in zip(with_pairs, without)]
    figures = {"tolerance": tolerances, "validation KL": validation}
    kept = all(kl <= tolerance for values in validation.values() for kl, tolerance in zip(values, tolerances))
    show(result(CLAIM, [row(name, outcomes) for name, outcomes in found.items()], gains, figures, {"within the tolerance": kept}))


if __name__ == "__main__":
    main()
