"""S223, UltraEdit: a thousand facts taught a hundred at a time, each batch on what the one before left."""

from __future__ import annotations

import functools
from typing import Any

from common import Claim, Setting, result, show
from kept import Kept
from modicum.edit.teaching import taught
from modicum.testing.facts import invented
from teaching import DATA, before, pupil, told

CLAIM = Claim(
    id="S223",
    system="UltraEdit",
    claim="One pass per batch gives key features and gradients, normalised by running statistics, and a closed-form least-squares shift per layer; "
    "sequential edits keep efficacy and locality on a small language model.",
    metric="share of all facts that are reached after the last batch; the method's minus fine-tuning's on the same layers",
    margin=2.0,
    setting=Setting(method="ultraedit", baselines=("finetune",), seeds=(0, 1, 2), test_samples=0),
)
COUNT, BATCH = 200, 50
METHODS = {
    "ultraedit": "ultraedit rounds=10", "finetune": "finetune steps=40 rate=0.003",

}  # fmt: skip


def once(method: str, seed: int) -> dict[str, Any]:
    """After all batches, of all facts, and of the last batch alone."""
    one, test = pupil(seed)
    facts = invented(COUNT, seed)
    old, known = before(one, facts, test)
    taught(one, facts, method, batch=BATCH)
    return told(one, facts, test, old) | {"the last batch": told(one, facts[-BATCH:], test, old)["efficacy"], "known before": known}


def main() -> None:
    kept, seeds = Kept.of(CLAIM.id), CLAIM.setting.seeds
    found = {
        name: [kept(f"{method}, seed {seed}", functools.partial(once, method, seed)) for seed in seeds] for name, method in METHODS.items()
    }
    rows = [{"option": name, **{key: [one[key] for one in each] for key in each[0]}} for name, each in found.items()]
    mine, other = found["ultraedit"], found["finetune"]
    drift = "loss more on other text"
    figures = {"facts": COUNT, "at a time": BATCH, "methods": METHODS}
    conditions = {"other text is harmed less than by fine-tuning in every seed": all(a[drift] < b[drift] for a, b in zip(mine, other))}
    show(result(CLAIM, kept, rows, [a["efficacy"] - b["efficacy"] for a, b in zip(mine, other)], figures, conditions, DATA))


if __name__ == "__main__":
    main()
