"""S081, self-distillation in kernel ridge regression: its closed form, its best weight, and an estimate of that for a net."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from common import Claim, Setting, result, show
from kept import Kept
from modicum.train.self_distillation import best_weight, distilled

ROWS, NEW, NOISE, RIDGE, STEPS = 60, 400, 1.0, 0.05, 6
DATA = f"Noisy values of a smooth function at {ROWS} places; chosen at {NEW} others and judged at {NEW} more"

CLAIM = Claim(
    id="S081",
    system="Weighted-target self-distillation theory",
    claim="In kernel ridge regression the closed form from the initial fit must equal explicitly iterated self-distillation for any weight; the "
    "closed-form optimal weight must match a grid search, and be estimated cheaply for a small net.",
    metric="mean square error of the first fit minus that after one step at the closed form's weight",
    margin=2.0,
    setting=Setting(method="closed form", baselines=("first fit",), seeds=(0, 1, 2, 3, 4), test_samples=0),
)


def rows(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Places and values to learn, to choose and to report; the last two without noise."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for count, noise in ((ROWS, NOISE), (NEW, 0.0), (NEW, 0.0)):
        x = torch.rand(count, 2, generator=draw, dtype=torch.float64) * 4 - 2
        found.append((x, (2 * x[:, 0]).sin() + x[:, 1].cos() + noise * torch.randn(count, generator=draw, dtype=torch.float64)))
    return found


def once(seed: int) -> dict[str, Any]:
    """Errors by the closed form, by iterating and by a grid."""
    (x, y), (near, known), (new, wanted) = rows(seed)
    kernel = lambda a, b: torch.exp(-torch.cdist(a, b).square())
    inverse = torch.linalg.inv(kernel(x, x) + RIDGE * torch.eye(ROWS, dtype=torch.float64))
    smooth = kernel(x, x) @ inverse
    apart = 0.0
    for weight in (0.0, 0.2, 0.5, 0.9, 1.0):
        fit = smooth @ y
        for step in range(STEPS):
            apart = max(apart, float((distilled(kernel(x, x), y, RIDGE, weight, step) - fit).abs().max()))
            fit = smooth @ (weight * y + (1 - weight) * fit)
    predict = lambda at, targets: kernel(at, x) @ inverse @ targets
    weight = best_weight(predict(near, y), predict(near, smooth @ y), known)
    mixed = lambda at, share: predict(at, share * y + (1 - share) * (smooth @ y))
    grid = torch.linspace(-3, 3, 1201, dtype=torch.float64).tolist()
    best = min(grid, key=lambda share: float((mixed(near, share) - known).square().mean()))
    error = lambda found: float((found - wanted).square().mean())
    return {"error": error(mixed(new, weight)), "first": error(predict(new, y)), "apart": apart, "weight": weight, "grid": best}


def net(x: torch.Tensor, y: torch.Tensor, seed: int) -> nn.Module:
    """A small net fitted to values."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(400):
        optimizer.zero_grad()
        (model(x.float())[:, 0] - y.float()).square().mean().backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def said(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What it says."""
    return model(x.float())[:, 0].double()


def by_nets(seed: int) -> dict[str, Any]:
    """The weight that two trainings estimate, and that of a grid of trainings."""
    (x, y), (near, known), _ = rows(seed)
    fit = said(net(x, y, seed), x)
    at = lambda share: said(net(x, share * y + (1 - share) * fit, seed), near)
    found = {share: float((at(share) - known).square().mean()) for share in (0.0, 0.25, 0.5, 0.75, 1.0)}
    estimate = min(1.0, max(0.0, best_weight(at(1.0), at(0.0), known)))
    return {
        "estimate": estimate,
        "grid": min(found, key=found.__getitem__),
        "at the estimate": float((at(estimate) - known).square().mean()),
        "best of the grid": min(found.values()),
    }


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    found = [kept(f"seed {seed}", functools.partial(once, seed)) for seed in setting.seeds]
    nets = [kept(f"nets, seed {seed}", functools.partial(by_nets, seed)) for seed in setting.seeds[:3]]
    table = [
        {"option": option, "error": [each[name] for each in found]} for option, name in (("closed form", "error"), ("first fit", "first"))
    ]
    figures = {
        "largest difference of the closed form from iterating": max(each["apart"] for each in found),
        "weights": [each["weight"] for each in found], "of a grid": [each["grid"] for each in found],
        "nets: weights of two trainings": [each["estimate"] for each in nets], "nets: of a grid of five": [each["grid"] for each in nets],
        "nets: error at the estimate above the grid's best": [each["at the estimate"] - each["best of the grid"] for each in nets],
    }  # fmt: skip
    conditions = {
        "the closed form is what iterating gives": figures["largest difference of the closed form from iterating"] < 1e-8,
        "its weight is that of a grid": all(abs(each["weight"] - each["grid"]) < 0.01 or abs(each["weight"]) > 3 for each in found),
        "two trainings of a net are within 0.02 of a grid": all(each["at the estimate"] - each["best of the grid"] < 0.02 for each in nets),
    }
    gains = [each["first"] - each["error"] for each in found]
    show(result(CLAIM, kept, table, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
