"""S366, PAR: related tasks share an expert; together they take less than an expert for each, at similar accuracy."""

from __future__ import annotations

import functools
import statistics

from common import Claim, Setting, result, show
from kept import Kept
from learning import CHOOSING, PAIRS, once, row, task
from scenes.digits import classifier, opened

CLAIM = Claim(
    id="S366",
    system="PAR (parameter allocation and regularization)",
    claim="The distance of a new task's features to class means tells whether it is like an earlier one, whose expert it then shares under a "
    "regularizer; others get experts of their own, searched for. All take fewer numbers than one expert per task, at similar accuracy.",
    metric="share of the bytes of one expert per task that are saved",
    margin=2.0,
    setting=Setting(method="par", baselines=("an expert for each",), beside=("finetune",), seeds=(0, 1, 2), test_samples=0),
)
RELATED = (0.03, 0.1, 0.3)
COMMON = "steps=120 rate=0.01 tried=20 largest=4"
DATA = (
    "A convolutional net of 10,000 parameters trained on 1,000 white digits is the base; ten tasks of two digits each, five plain and then the same "
    "under blur. The distance below which a task shares is chosen by a seed and pictures of their own: the fewest bytes within 0.01 of the best"
)


def net(seed: int):
    """The base."""
    return opened(classifier(net="conv", seed=seed % 10))


def tasks(seed: int, part: str):
    """Pairs, and pairs again."""
    return [task(f"{pair} {name or 'plain'}", name, pair, seed, part) for name in (None, "blur") for pair in PAIRS]


def main() -> None:
    kept, seeds = Kept.of(CLAIM.id), CLAIM.setting.seeds
    tried = {
        f"par related={related} {COMMON}": kept(
            f"choosing {related}", functools.partial(once, net, tasks, f"par related={related} {COMMON}", CHOOSING, "validation")
        )
        for related in RELATED
    }
    best = max(each["accuracy"] for each in tried.values())
    chosen = min((name for name, each in tried.items() if each["accuracy"] >= best - 0.01), key=lambda name: tried[name]["bytes"])
    methods = {"par": chosen, "an expert for each": f"par related=0 {COMMON}", "finetune": "finetune steps=120 rate=0.003"}
    found = {
        name: [kept(f"{method}, seed {seed}", functools.partial(once, net, tasks, method, seed, "test")) for seed in seeds]
        for name, method in methods.items()
    }
    apart = [other["accuracy"] - mine["accuracy"] for mine, other in zip(found["par"], found["an expert for each"])]
    figures = {"methods": methods, "experts": [each["deltas"] for each in found["par"]], "accuracy lost against an expert for each": apart}
    conditions = {"mean accuracy within 0.02 of an expert for each": statistics.mean(apart) < 0.02}
    gains = [1 - mine["bytes"] / other["bytes"] for mine, other in zip(found["par"], found["an expert for each"])]
    show(result(CLAIM, kept, [row(name, each) for name, each in found.items()], gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
