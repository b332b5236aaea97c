"""S341, CLR: channel maps on a frozen net learn new tasks better than a linear probe, and old answers stay the same bits."""

from __future__ import annotations

import functools

from common import Claim, Setting, result, show
from kept import Kept
from learning import once, row, under
from scenes.digits import classifier, opened

CLAIM = Claim(
    id="S341",
    system="CLR (channel-wise lightweight reprogramming)",
    claim="After each frozen convolution stand per-task depthwise 3x3 channel maps, the identity at first, which alone are trained; old answers stay "
    "the same bits, added numbers are few, and new tasks are told better than by a linear probe.",
    metric="mean accuracy on the tasks; the method's minus a linear probe's",
    margin=2.0,
    setting=Setting(method="clr", baselines=("probe",), beside=("finetune",), seeds=(0, 1, 2), test_samples=0),
)
TASKS = ("inverted", "turned", "covered", "noise")
METHODS = {
    "clr": "clr steps=200 rate=0.01", "probe": "probe steps=200 rate=0.03", "finetune": "finetune steps=200 rate=0.003",
}  # fmt: skip
DATA = (
    "A convolutional net of 10,000 parameters trained on 1,000 white digits is the base; the tasks are the ten digits inverted, turned, covered and "
    "under noise, 400 to learn and 497 to report of each"
)


def net(seed: int):
    """The base."""
    return opened(classifier(net="conv", seed=seed))


def main() -> None:
    kept, seeds, tasks = Kept.of(CLAIM.id), CLAIM.setting.seeds, functools.partial(under, TASKS)
    found = {
        name: [kept(f"{method}, seed {seed}", functools.partial(once, net, tasks, method, seed, "test")) for seed in seeds]
        for name, method in METHODS.items()
    }
    dense = sum(each.numel() for each in net(0).parameters())
    maps = sum(module.out_channels * 9 for module in net(0).modules() if hasattr(module, "out_channels"))
    figures = {
        "methods": METHODS, "numbers of a task's maps, as a share of the net's": maps / dense,
        "lost by fine-tuning": [each["lost"] for each in found["finetune"]],
    }  # fmt: skip
    conditions = {
        "old answers are the same bits": all(each["same bits"] == 1 for each in found["clr"]),
        "maps of a task are below a tenth of the net": maps < 0.1 * dense,
    }
    gains = [mine["accuracy"] - other["accuracy"] for mine, other in zip(found["clr"], found["probe"])]
    show(result(CLAIM, kept, [row(name, each) for name, each in found.items()], gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
