"""S009, layer tickets: residual blocks left out before training, against filters left out at the same multiply-adds."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from common import Claim, Setting, result, show
from small import DATA, fitted, less, row, shared

STEPS, WIDTH, DEPTH, NEAR = 250, 12, 6, 0.02

CLAIM = Claim(
    id="S009",
    system="Layer-pruning lottery tickets at initialization",
    claim="Score residual blocks at random init, drop them, and train only the remaining sub-network; it must match the dense ResNet with fewer "
    "layers, while filter-removal tickets at the same FLOPs fall behind.",
    metric="accuracy with three blocks of six minus that of the whole net, plus 0.02",
    margin=2.0,
    setting=Setting(method="layer_tickets keep=0.5", baselines=("dense",), beside=("filters, half of each block's",), test_samples=0),
)


class Block(nn.Module):
    """Two convolutions beside their input."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(width, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.second, self.last = nn.Conv2d(inner, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As wide as it came."""
        return torch.relu(x + self.last(self.second(torch.relu(self.norm(self.first(x))))))


class Residual(nn.Module):
    """A stem that halves twice, blocks, a mean over places, a head."""

    def __init__(self, inner: int = WIDTH) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1, stride=4, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.blocks = nn.ModuleList(Block(WIDTH, inner) for _ in range(DEPTH))
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def once(method: str, seed: int) -> dict[str, float]:
    """The net under a method for its blocks; filters left out at random are a net of narrower blocks."""
    torch.manual_seed(seed)
    model = Residual(WIDTH // 2 if method.startswith("filters") else WIDTH)
    inside = "dense" if method.startswith("filters") else method
    plan: dict[str, Any] = {
        name: inside if name.startswith("blocks") and value.ndim == 4 else "dense" for name, value in model.named_parameters()
    }
    return fitted(model, plan, seed, STEPS)


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    rows = [
        row(method, [kept(f"residual {method}, seed {seed}", functools.partial(once, method, seed)) for seed in setting.seeds])
        for method in (setting.method, *setting.baselines, *setting.beside)
    ]
    gains = [NEAR - gain for gain in less(rows[0], rows[1], "accuracy")]
    behind = less(rows[0], rows[2])
    conditions = {
        "as many numbers as with half of the filters": rows[0]["values"] == rows[2]["values"],
        "half of the filters fall behind in the mean": sum(behind) > 0,
    }
    figures = {"test loss of half of the filters minus that of half of the blocks": behind}
    show(result(CLAIM, kept, rows, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
