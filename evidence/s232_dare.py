"""S232, DARE: nine tenths of what a fine-tuned language model learnt dropped, and two such models merged, against the mean of both."""

from __future__ import annotations

import functools
import statistics
from typing import Any

from common import Claim, Setting, result, show
from kept import Kept
from modicum.models.located import DEMO
from scenes.domains import DOMAINS, losses, opened, specialist, windows
from tasks import merged

CLAIM = Claim(
    id="S232",
    system="DARE",
    claim="Randomly drops fraction p of delta parameters, rescales survivors by 1/(1-p); accuracy holds at p=0.9 for a fine-tuned small LM, "
    "and merging "
    "DARE-sparsified models retains each task better than plain averaging.",
    metric="mean loss per token over both domains of the plain mean of two specialists minus that of their merge by DARE, its scale chosen "
    "on validation "
    "windows",
    margin=2.0,
    setting=Setting(
        method="dare density=0.1", baselines=("average",), seeds=(0, 1, 2), tokens=128, test_samples=64, beside=("task_arithmetic",)
    ),
)
SCALES, DROPS, WINDOWS = (0.5, 0.7, 1.0), (0.5, 0.9, 0.99), 64
DATA = "The demo fine-tuned whole on the sources and on the prose of its texts, 120 updates each; both merged, and one of them with entries dropped"


@functools.cache
def _net() -> Any:
    return opened(str(DEMO))


def loss(tensors: Any, domain: str, part: str = "test") -> float:
    """Loss per token on a domain."""
    _net().load_state_dict({name: value.float() for name, value in tensors.items()}, strict=False)
    return float(losses(_net(), windows(domain, part)[:WINDOWS]).mean())


def once(seed: int) -> dict[str, Any]:
    """Losses of all by one seed."""
    base = {name: value.clone() for name, value in opened(str(DEMO)).state_dict().items()}
    models = [opened(specialist(domain=domain, seed=seed)).state_dict() for domain in DOMAINS]
    both = lambda tensors, part="test": statistics.mean(loss(tensors, domain, part) for domain in DOMAINS)
    at = lambda text, scale: merged(f"{text} scale={scale}", base, models, seed=seed)
    best = lambda text: min((at(text, scale) for scale in SCALES), key=lambda tensors: both(tensors, "validation"))
    dropped = {str(drop): merged(f"dare density={1 - drop:g}", base, models[:1], seed=seed) for drop in DROPS}
    return {
        "merges": {"dare density=0.1": both(best("dare density=0.1")), "average": both(merged("average", base, models)),
                   "task_arithmetic": both(best("task_arithmetic"))},
        "base": loss(base, DOMAINS[0]), "tuned": loss(models[0], DOMAINS[0]), "own": [loss(each, domain) for each, domain in zip(models, DOMAINS)],
        "dropped": {drop: loss(tensors, DOMAINS[0]) for drop, tensors in dropped.items()},
    }  # fmt: skip


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    found = [kept(f"seed {seed}", functools.partial(once, seed)) for seed in setting.seeds]
    rows = [
        {"option": text, "mean loss": [each["merges"][text] for each in found]}
        for text in (setting.method, *setting.baselines, *setting.beside)
    ]
    gains = [each["merges"]["average"] - each["merges"]["dare density=0.1"] for each in found]
    lost = {drop: [(each["dropped"][drop] - each["tuned"]) / (each["base"] - each["tuned"]) for each in found] for drop in map(str, DROPS)}
    figures = {f"share of the gain lost where {float(drop):.0%} is dropped": values for drop, values in lost.items()}
    figures |= {"mean loss of each specialist on its own domain": [statistics.mean(each["own"]) for each in found]}
    conditions = {"with nine tenths dropped at least nine tenths of the gain stay, in every seed": max(lost["0.9"]) <= 0.1}
    show(result(CLAIM, kept, rows, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
