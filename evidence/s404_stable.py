"""S404, stable sensitivity pruning: a hundred sparse layers on the edge of chaos with rescaling, without it, and off the edge."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn import functional as F

from common import Claim, Setting, result, show
from modicum.train.scoring import scored
from modicum.train.trained import Trained
from scenes import digits
from scenes.training import classes
from small import DATA, less, row, shared

DEPTH, WIDTH, STEPS = 100, 64, 80

CLAIM = Claim(
    id="S404",
    system="Robust pruning at initialization (SBP-SR)",
    claim="Sensitivity pruning at edge-of-chaos initialisation plus the rescaling trick on surviving weights: a 100-layer sparse network trains, no "
    "layer is fully pruned, and the off-edge initialisation fails as predicted.",
    metric="test loss without rescaling minus that with it, a hundred layers of tanh, three weights of ten kept",
    margin=2.0,
    setting=Setting(
        method="sbp_sr keep=0.3 gain=1.0", baselines=("sbp_sr keep=0.3 gain=1.0 rescaled=false",),
        beside=("sbp_sr keep=0.3 gain=0.5",), test_samples=0,
    ),
)  # fmt: skip


def deep(method: str, seed: int) -> dict[str, float]:
    """Loss of a deep net after a few updates, and the entries of its emptiest layer."""
    torch.manual_seed(seed)
    layers = [layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH, bias=False), nn.Tanh())]
    (x, y), (tested, wanted) = digits.pictures("train"), digits.pictures("test")
    centre, spread = x.mean(0), x.std(0) + 0.1
    x, tested = (((each - centre) / spread)[:, :1].flatten(1) for each in (x, tested))
    model = nn.Sequential(nn.Linear(digits.SIDE**2, WIDTH), *layers, nn.Linear(WIDTH, 10))
    names = [f"{1 + 2 * place}.weight" for place in range(DEPTH)]
    with Trained(model, {"*": "dense", **dict.fromkeys(names, method)}, seed=seed, total=STEPS) as t:
        scored(t, lambda: classes(model, (x[:256], y[:256])))
        least = min(int((t.weight(name) != 0).sum()) for name in names)
        optimizer = torch.optim.Adam(t.parameters(), lr=1e-3)
        for _ in range(STEPS):
            optimizer.zero_grad()
            classes(model, (x, y)).backward()
            optimizer.step()
            t.revise(optimizer)
        return {"loss": float(F.cross_entropy(digits.logits(model, tested), wanted)), "emptiest": least}


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    rows = [
        row(method, [kept(f"deep {method}, seed {seed}", functools.partial(deep, method, seed)) for seed in setting.seeds])
        for method in (setting.method, *setting.baselines, *setting.beside)
    ]
    conditions = {
        "no layer is fully pruned": min(rows[0]["emptiest"]) > 0,
        "it trains": max(rows[0]["loss"]) < 2.2,
        "off the edge nothing is learnt": min(rows[2]["loss"]) > 2.25,
    }
    show(result(CLAIM, kept, rows, less(rows[0], rows[1]), {"against off the edge": less(rows[0], rows[2])}, conditions, DATA))


if __name__ == "__main__":
    main()
