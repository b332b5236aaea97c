"""S037, MEND: networks trained on facts like those to come write one fact at a time, against fine-tuning on the one fact."""

from __future__ import annotations

import functools
import statistics
from typing import Any

from common import Claim, Setting, result, show
from kept import Kept
from modicum.core.recipe import recipe
from modicum.edit.editor import Past
from modicum.testing.facts import invented
from teaching import DATA, before, pupil, told

CLAIM = Claim(
    id="S037",
    system="MEND",
    claim="Editor networks map the factors of each layer's gradient to an update; edits of one pair succeed, carry to paraphrases, and change "
    "unrelated outputs less than fine-tuning.",
    metric="loss more on other text after one edit; fine-tuning's minus the method's",
    margin=2.0,
    setting=Setting(method="mend", baselines=("finetune",), seeds=(0, 1, 2), test_samples=0),
)
FACTS, LIKE = 10, 40
METHODS = {"mend": "mend steps=400", "finetune": "finetune steps=25 rate=0.001"}


def once(method: str, seed: int) -> dict[str, Any]:
    """Means over edits of one fact each, every one of the model as it was."""
    one, test = pupil(seed)
    facts, like = invented(FACTS, seed), invented(LIKE, 1000 + seed)
    old, known = before(one, facts, test)
    editor, past = recipe("edit", method), Past()
    with one.computing():
        if method.startswith("mend"):
            past = editor.teach(one, like, past)  # which trains its networks
    found = []
    for fact in facts:
        one.changes = {}
        with one.computing():
            editor.teach(one, [fact], Past(past.count, dict(past.sums)))
        found.append(told(one, [fact], test[:8], old[:8]))
    return {name: statistics.mean(each[name] for each in found) for name in found[0]} | {"known before": known}


def main() -> None:
    kept, seeds = Kept.of(CLAIM.id), CLAIM.setting.seeds
    found = {
        name: [kept(f"{method}, seed {seed}", functools.partial(once, method, seed)) for seed in seeds] for name, method in METHODS.items()
    }
    rows = [{"option": name, **{key: [one[key] for one in each] for key in each[0]}} for name, each in found.items()]
    mine, other = found["mend"], found["finetune"]
    conditions = {
        "at least nine of ten edits succeed": statistics.mean(each["efficacy"] for each in mine) >= 0.9,
        "paraphrases are reached as often as by fine-tuning": statistics.mean(
            a["paraphrases"] - b["paraphrases"] for a, b in zip(mine, other)
        )
        >= -0.05,
    }
    key = "loss more on other text"
    show(result(CLAIM, kept, rows, [b[key] - a[key] for a, b in zip(mine, other)], {"methods": METHODS}, conditions, DATA))


if __name__ == "__main__":
    main()
