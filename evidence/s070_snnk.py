"""S070, SNNK: a layer as a dot product of random features, and adapters of them beside the decoder that learns prose, against bottlenecks."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise
from typing import Any

import torch

from adapting import adapted, before, data, means, row, shared
from common import Claim, Setting, result, show

CLAIM = Claim(
    id="S070",
    system="SNNK",
    claim="Replace f(Wx+b) by a dot product Phi(x)Psi(W,b) of universal random features and bundle consecutive linear maps; approximation error "
    "must fall with feature count, parameters shrink, and SNNK adapters fine-tune competitively.",
    metric="fall of held-out loss by adapters of 8 random features minus 0.95 of that by bottlenecks of rank 8",
    margin=2.0,
    setting=Setting(method="snnk features=8", baselines=("bottleneck rank=8",), test_samples=0),
)
RATES: dict[str, tuple[float, ...]] = {
    "snnk features=8": (1e-2, 3e-2), "bottleneck rank=8": (3e-3, 1e-2),
}  # fmt: skip
SHARE, FEATURES, WIDTH, ROWS = 0.95, (64, 256, 1024, 4096), 32, 128


def missed(features: int, seed: int) -> float:
    """Relative error of ``sin(W x + b)`` as a product of features of x alone and of W and b alone, over random layers of rows of unit length.

    ``exp(i w·x)`` is the mean over normal g of ``exp(a g·w - a² |w|²/2) exp(a g·x - a² |x|²/2)`` with a² = i.
    """
    chance = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=chance, dtype=torch.float64)
    w, x, b, g = draw(ROWS, WIDTH), draw(ROWS, WIDTH), draw(ROWS), draw(features, WIDTH)
    w, x = (each / each.norm(dim=1, keepdim=True) for each in (w, x))
    a = torch.tensor(complex(math.sqrt(0.5), math.sqrt(0.5)), dtype=torch.complex128)
    of = lambda rows: torch.exp(a * (rows @ g.T) - a * a * rows.square().sum(1, keepdim=True) / 2)
    weights = of(w) * torch.exp(1j * b)[:, None] / features
    found, true = (of(x) @ weights.T).imag, torch.sin(x @ w.T + b)
    return float((found - true).norm() / true.norm())


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    untrained = kept("before", before)
    found: dict[str, list[dict[str, Any]]] = {plan: adapted(kept, plan, setting.seeds, rates) for plan, rates in RATES.items()}
    falls = {plan: [untrained - loss for loss in means(each, "loss")] for plan, each in found.items()}
    gains = [mine - SHARE * other for mine, other in zip(falls["snnk features=8"], falls["bottleneck rank=8"])]
    errors = {count: statistics.mean(missed(count, seed) for seed in range(8)) for count in FEATURES}
    trained = {plan: each[0]["trained"] for plan, each in found.items()}
    figures = {
        "held-out loss before training": untrained, "relative error of a layer, by features": {str(count): error for count, error in errors.items()},
        "numbers trained": trained,
    }  # fmt: skip
    conditions = {
        "the error of a layer falls with every fourfold of features": all(errors[a] > errors[b] for a, b in pairwise(FEATURES)),
        "at most 0.6 of the bottleneck's trained numbers": trained["snnk features=8"] <= 0.6 * trained["bottleneck rank=8"],
    }
    show(result(CLAIM, kept, [row(plan, each) for plan, each in found.items()], gains, figures, conditions, data(2)))


if __name__ == "__main__":
    main()
