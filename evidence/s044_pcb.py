"""S044, PCB-Merging: six specialists of corrupted digits made one, against task arithmetic and TIES."""

from __future__ import annotations

import functools
import statistics
from typing import Any

from common import Claim, Setting, result, show
from kept import Kept
from tasks import TASKS, base, best, over, specialists

CLAIM = Claim(
    id="S044",
    system="PCB-Merging",
    claim="Compute intra-task (softmax of squared task vector) and inter-task (cross-task product) scores, drop low-score entries, rescale the rest "
    "by score; the merged small model's mean task accuracy must beat task arithmetic and TIES.",
    metric="mean test accuracy over six tasks of PCB minus that of the better of task arithmetic and TIES, each at its best scale on validation data",
    margin=2.0,
    setting=Setting(method="pcb keep=0.1", baselines=("task_arithmetic", "ties density=0.2"), seeds=(0, 1, 2), test_samples=0),
)
SCALES = {
    "pcb keep=0.1": (0.6, 1.0, 1.4, 1.8, 2.4, 3.0),
    "task_arithmetic": (0.1, 0.2, 0.3, 0.4, 0.5, 0.7),
    "ties density=0.2": (0.4, 0.7, 1.0, 1.4, 1.8, 2.4),
}
DATA = "A ViT trained on clean digits, fine-tuned on each of six corruptions, merged; scales chosen on 300 validation pictures a task"


def once(text: str, seed: int) -> dict[str, Any]:
    """Accuracies of one method by one seed, and its scale."""
    scale, found = best(text + " scale={scale}", SCALES[text], base(seed), specialists(seed))
    return {"accuracy": statistics.mean(over(found)), "scale": scale, "least": min(over(found))}


def alone(seed: int) -> dict[str, Any]:
    """What the base and each specialist reach: the bounds."""
    own = [over(model, [task])[0] for task, model in zip(TASKS, specialists(seed))]
    return {"base": statistics.mean(over(base(seed))), "specialists": statistics.mean(own)}


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    found = {
        text: [kept(f"{text}, seed {seed}", functools.partial(once, text, seed)) for seed in setting.seeds]
        for text in (setting.method, *setting.baselines)
    }
    bounds = [kept(f"bounds, seed {seed}", functools.partial(alone, seed)) for seed in setting.seeds]
    rows = [{"option": text, **{name: [each[name] for each in mine] for name in mine[0]}} for text, mine in found.items()]
    rows[1:] = sorted(rows[1:], key=lambda row: -statistics.mean(row["accuracy"]))
    gains = [one - max(others) for one, *others in zip(*(row["accuracy"] for row in rows))]
    figures = {f"mean accuracy of {name}": [each[name] for each in bounds] for name in bounds[0]}
    show(result(CLAIM, kept, rows, gains, figures, {}, DATA))


if __name__ == "__main__":
    main()
