"""S014, the value of pruning: a net whose channels were pruned and that was trained on, against one of its shape trained from random weights."""

from __future__ import annotations

import functools

import torch
from torch import nn

from common import Claim, Setting, result, show
from scenes import digits
from small import DATA, fitted, less, row, shared

WIDE, NARROW, STEPS, AFTER = 16, 6, 250, 250
TOLERANCE = 0.05

CLAIM = Claim(
    id="S014",
    system="Rethinking the Value of Network Pruning",
    claim="Prune a ResNet structurally and fine-tune; train the same architecture from random init with equal epochs and with equal compute; report "
    "both over seeds as a mandatory baseline, scratch matching within noise.",
    metric="test loss of the pruned net plus 0.05 nats minus that of one trained from random weights with the operations of the wide one",
    margin=2.0,
    setting=Setting(
        method="from random weights, equal operations",
        baselines=("pruned and trained on",),
        beside=("from random weights, equal updates",),
        test_samples=0,
    ),
)


def scratch(seed: int, steps: int) -> dict[str, float]:
    """The narrow net from random weights."""
    torch.manual_seed(seed)
    return fitted(digits.Conv(NARROW), "dense", seed, steps)


def pruned(seed: int, rate: float = 1e-2) -> dict[str, float]:
    """The wide net trained, narrowed to the filters of largest norm, and trained on."""
    torch.manual_seed(seed)
    wide, narrow = digits.Conv(WIDE), digits.Conv(NARROW)
    _train(wide, seed, STEPS)
    kept = torch.arange(3)
    for one, other in zip(wide.body, narrow.body):
        filters = one[0].weight.detach().flatten(1).norm(dim=1).topk(len(other[0].weight)).indices.sort().values
        other[0].weight.data = one[0].weight.detach()[filters][:, kept].clone()
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(other[1], name).data = getattr(one[1], name).detach()[filters].clone()
        kept = filters
    narrow.head.weight.data, narrow.head.bias.data = wide.head.weight.detach()[:, kept].clone(), wide.head.bias.detach().clone()
    return fitted(narrow, "dense", seed, AFTER, rate)


def _train(model: nn.Module, seed: int, steps: int) -> None:
    from scenes.training import classes, drawn
    from scenes.training import fitted as plainly

    x, y = digits.pictures("train")
    plainly(model, ((x[places], y[places]) for places in drawn(len(x), 64, seed)), classes, 1e-2, steps)


def operations(width: int) -> float:
    """Multiply-adds of one picture's pass, in the three convolutions."""
    return 9 * (3 * width * 256 + width * 2 * width * 64 + 4 * width * width * 16)


def main() -> None:
    kept, seeds = shared(), CLAIM.setting.seeds
    longer = round(STEPS * operations(WIDE) / operations(NARROW))
    runs = {
        f"{CLAIM.setting.method}": (f"scratch {longer}", functools.partial(scratch, steps=longer)),
        "pruned and trained on": ("pruned", pruned),
        "from random weights, equal updates": (f"scratch {STEPS + AFTER}", functools.partial(scratch, steps=STEPS + AFTER)),
    }
    rows = [
        row(name, [kept(f"{step}, seed {seed}", functools.partial(work, seed)) for seed in seeds]) for name, (step, work) in runs.items()
    ]
    gains = [gain + TOLERANCE for gain in less(rows[0], rows[1])]
    figures = {"pruned minus random weights, equal operations": less(rows[0], rows[1]), "equal updates": less(rows[2], rows[1])}
    show(result(CLAIM, kept, rows, gains, figures, {"of one shape": rows[0]["values"] == rows[1]["values"]}, DATA))


if __name__ == "__main__":
    main()
