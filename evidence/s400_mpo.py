"""S400, matrix product operators: six blocks that share their central tensors, against two blocks of their own."""

from __future__ import annotations

import functools

import torch

from common import Claim, Setting, result, show
from modicum.core.parametrization import Start, Step
from modicum.restrict import Mpo
from scenes.patches import Patches, plan
from small import DATA, fitted, less, row, shared

STEPS, RATE, INNER, NEAR = 300, 3e-3, 96, 0.02
DEPTHS = {"mpo bond=12 shared=true": 6, "dense": 2, "mpo bond=12": 2}

CLAIM = Claim(
    id="S400",
    system="MPO parameter sharing (MPOBERT)",
    claim="Factor weight matrices into matrix product operators (exact at full bond), share the central tensor over layers, keep auxiliary tensors "
    "and adapters per layer, initialise deeper from shallow; deeper model at lower parameter count matches loss.",
    metric="accuracy of six blocks that share central tensors minus that of two dense ones, plus 0.02",
    margin=2.0,
    setting=Setting(method="mpo bond=12 shared=true", baselines=("dense",), beside=("mpo bond=12",), test_samples=0),
)


def once(method: str, seed: int) -> dict[str, float]:
    """A net of the depth that goes with a method."""
    torch.manual_seed(seed)
    model = Patches(DEPTHS[method], INNER)
    return fitted(model, plan(model, method), seed, STEPS, RATE)


def exact() -> float:
    """By how much a weight at a whole bond differs from itself."""
    weight, method = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)), Mpo(bond=16)
    state = method.begin(Start("w", (64, 96), weight, torch.Generator().manual_seed(0), 0))
    return float((method.weight(None, state, Step()) - weight).abs().max())


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    rows = [
        row(
            method,
            [
                kept(f"patches {method}, depth {DEPTHS[method]}, seed {seed}", functools.partial(once, method, seed))
                for seed in setting.seeds
            ],
        )
        for method in (setting.method, *setting.baselines, *setting.beside)
    ]
    gains = [NEAR - gain for gain in less(rows[0], rows[1], "accuracy")]
    conditions = {"exact at a whole bond": exact() < 1e-5, "fewer numbers": rows[0]["values"][0] < rows[1]["values"][0]}
    show(result(CLAIM, kept, rows, gains, {"test loss against two dense blocks": less(rows[0], rows[1])}, conditions, DATA))


if __name__ == "__main__":
    main()
