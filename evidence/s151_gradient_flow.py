"""S151, progressive gradient flow: entries that fade against a straight-through gradient, one weight of sixteen kept."""

from __future__ import annotations

import functools

import torch

from common import Claim, Setting, result, show
from scenes import digits
from small import DATA, fitted, less, row, shared

STEPS, RATE = 250, 2e-3

CLAIM = Claim(
    id="S151",
    system="Progressive Gradient Flow (N:M)",
    claim="Trains a small transformer at high N:M sparsity (1:8, 1:16), multiplying pruned weights in the forward pass by a factor decayed to zero, "
    "and beats SR-STE validation accuracy at equal training FLOPs.",
    metric="test loss of SR-STE minus that of fading, a ViT with one weight of sixteen in its blocks, as many updates",
    margin=2.0,
    setting=Setting(method="gradient_flow n=1 m=16", baselines=("sr_ste n=1 m=16",), test_samples=0),
)


def vit(method: str, seed: int) -> dict[str, float]:
    """A ViT of two blocks from random weights."""
    torch.manual_seed(seed)
    return fitted(digits.vit(layers=2), method, seed, STEPS, RATE)


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    rows = [
        row(method, [kept(f"vit {method}, seed {seed}", functools.partial(vit, method, seed)) for seed in setting.seeds])
        for method in (setting.method, *setting.baselines)
    ]
    show(result(CLAIM, kept, rows, less(rows[0], rows[1]), {}, {"as many bytes": rows[0]["bytes"] == rows[1]["bytes"]}, DATA))


if __name__ == "__main__":
    main()
