"""S310, MOS: an adapter for each task, merged with earlier ones and found again by the input, against one adapter that is trained on."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from common import Claim, Setting, result, show
from kept import Kept
from learning import done, row, split
from modicum.core.recipe import recipe
from modicum.core.settings import param
from modicum.data.splits import Batch
from modicum.learn.learner import Learner, Learning, of_head
from modicum.learn.tasks import Task
from scenes.digits import classifier, opened

CLAIM = Claim(
    id="S310",
    system="MOS (model surgery)",
    claim="One adapter per task on a frozen ViT, merged with earlier ones while it is trained, class means as a head, and an adapter found for each "
    "input without training: average incremental accuracy exceeds that of one adapter trained on task after task.",
    metric="average incremental accuracy where nobody names the task; the method's minus one adapter's",
    margin=2.0,
    setting=Setting(method="mos", baselines=("one adapter",), seeds=(0, 1, 2), test_samples=0),
)
COMMON = {"steps": 100, "rate": 3e-3, "rank": 8}
DATA = (
    "A ViT of 140,000 parameters trained on 1,000 white digits is the base; the tasks are pairs of inverted digits, 80 or so to learn of each pair, "
    "all digits seen so far to be told without the task's name"
)


@dataclass(frozen=True, kw_only=True)
class One(Learner):
    """One adapter and one layer of classes, trained on."""

    rank: int = param(8, "width of the adapter", between=(1, 65536))

    def learn(self, learning: Learning, task: Task) -> None:
        """Go on where the last task ended."""
        plan = {"*": f"bottleneck rank={self.rank}", **of_head(learning.module, task)}
        last = learning.experts[0] if learning.experts else None
        learning.give(task, self.fitted(learning.module, plan, learning, task, begun=last), None if last is None else 0)

    def answers(self, learning: Learning, batch: Batch) -> torch.Tensor:
        """The likeliest of all classes so far."""
        classes = torch.cat([task.classes for task in learning.tasks])
        with torch.no_grad(), learning.answering(0) as module:
            logits = module(*batch[:-1]).logits[:, classes]
        return classes[logits.argmax(1)]


def once(method: str, seed: int) -> dict[str, Any]:
    """A method's figures by one seed."""
    said = " ".join(f"{name}={value}" for name, value in COMMON.items())
    asked = One(**COMMON) if method == "one adapter" else recipe("learn", f"mos {said}{' merges=0' if 'without' in method else ''}")
    return done(opened(classifier(net="vit", seed=seed), "vit"), split(seed, "test", "inverted"), asked, seed)[1]


def main() -> None:
    kept, seeds = Kept.of(CLAIM.id), CLAIM.setting.seeds
    names = (CLAIM.setting.method, *CLAIM.setting.baselines, *CLAIM.setting.beside)
    found = {name: [kept(f"{name}, seed {seed}", functools.partial(once, name, seed)) for seed in seeds] for name in names}
    key = "average incremental accuracy"
    conditions = {"old answers of a named task are the same bits": all(each["same bits"] == 1 for each in found["mos"])}
    gains = [mine[key] - other[key] for mine, other in zip(found["mos"], found["one adapter"])]
    show(result(CLAIM, kept, [row(name, each) for name, each in found.items()], gains, {"settings": COMMON}, conditions, DATA))


if __name__ == "__main__":
    main()
