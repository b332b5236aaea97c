"""S398, M-FAC, its dynamic half: descent under a window of gradients against plain descent with momentum, on a convolutional net.

Three convolutions with batch norms learn Scikit-learn's digits from random weights in a few updates. Each optimizer takes the best of its rates, by
the loss on validation pictures with seeds of its own. Beside them stands AdamW. Time is told: it is no part of the claim.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from typing import Any

import torch
from torch import nn

from common import Claim, Setting, result, show
from kept import Kept
from modicum.train.mfac import Mfac
from scenes.digits import Conv, accuracy, logits, pictures
from scenes.training import drawn

STEPS, BATCH, WINDOW, APART = 120, 64, 32, (100, 101)
RATES = {"mfac": (0.03, 0.1, 0.3), "sgd": (0.03, 0.1, 0.3), "adamw": (0.003, 0.01, 0.03)}
MAKE = {
    "mfac": lambda parameters, rate: Mfac(parameters, lr=rate, window=WINDOW),
    "sgd": lambda parameters, rate: torch.optim.SGD(parameters, lr=rate, momentum=0.9),
    "adamw": lambda parameters, rate: torch.optim.AdamW(parameters, lr=rate),
}
CLAIM = Claim(
    id="S398B",
    system="M-FAC, dynamic",
    claim="The dynamic variant preconditions SGD over a sliding gradient window.",
    metric="test cross-entropy after 120 updates of plain descent with momentum minus that under a window of 32 gradients, each at its best rate",
    margin=2.0,
    setting=Setting(method="mfac", baselines=("sgd",), beside=("adamw",), seeds=(0, 1, 2, 3, 4), samples=0, tokens=0, test_samples=497),
)


def trained(name: str, rate: float, seed: int, part: str) -> dict[str, Any]:
    """Loss and accuracy on a part of the pictures after training."""
    torch.manual_seed(seed)
    net, (x, y), start = Conv().train(), pictures("train"), time.process_time()
    optimizer = MAKE[name](net.parameters(), rate)
    for places in itertools.islice(drawn(len(x), BATCH, seed), STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[places]), y[places]).backward()
        optimizer.step()
    seconds, (test, labels) = time.process_time() - start, pictures(part)
    loss = float(nn.functional.cross_entropy(logits(net.eval(), test), labels))
    return {"loss": loss, "accuracy": accuracy(net, test, labels), "seconds": seconds}


def best(name: str) -> float:
    """The rate of least validation loss, by seeds that count nowhere else."""
    return min(RATES[name], key=lambda rate: sum(trained(name, rate, seed, "validation")["loss"] for seed in APART))


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    names = (setting.method, *setting.baselines, *setting.beside)
    rates = {name: kept(f"rate of {name}", functools.partial(best, name)) for name in names}
    found = {
        name: [kept(f"{name}, seed {seed}", functools.partial(trained, name, rates[name], seed, "test")) for seed in setting.seeds]
        for name in names
    }
    rows = [
        {"option": f"{name} rate={rates[name]:g}", **{key: [each[key] for each in found[name]] for key in found[name][0]}} for name in names
    ]
    gains = [b["loss"] - a["loss"] for a, b in zip(found["mfac"], found["sgd"])]
    figures = {f"{name}, mean test loss": statistics.mean(each["loss"] for each in found[name]) for name in names}
    show(result(CLAIM, kept, rows, gains, figures, {}, "nets trained on Scikit-learn's digits as colour pictures of 16 by 16"))


if __name__ == "__main__":
    main()
