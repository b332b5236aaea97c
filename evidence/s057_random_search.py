"""S057, random search: the best of fifty node masks by their loss before training, against one mask drawn by chance."""

from __future__ import annotations

import functools

import torch
from torch import nn

from common import Claim, Setting, result, show
from scenes import digits
from scenes.training import classes, drawn
from scenes.training import fitted as learnt
from small import DATA, less, row, shared, worth

STEPS, KEEP, TRIED, NEAR = 250, 0.25, 50, 0.03

CLAIM = Claim(
    id="S057",
    system="Random Search sparse baseline",
    claim="Sample random node masks at fixed sparsity, keep the best by initial loss, train it; compare against a single random mask and the dense "
    "parent over seeds; searched must not be significantly better than random.",
    metric="0.03 nats minus the test loss of a random mask, a quarter of the channels left, plus that of the best of 50",
    margin=2.0,
    setting=Setting(method="random mask", baselines=("best of 50",), seeds=(0, 1, 2, 3, 4), beside=("dense",), test_samples=0),
)


class Nodes(digits.Conv):
    """The net with channels switched off behind each convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[torch.Tensor] = []

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What the head is given."""
        for layer, mask in zip(self.body, self.masks):
            x = layer(x) * mask[:, None, None]
        return x.mean((2, 3))


def masks(chance: torch.Generator, keep: float) -> list[torch.Tensor]:
    """Channels that stay of each layer, as many in each mask."""
    return [torch.zeros(size).index_fill(0, torch.randperm(size, generator=chance)[: round(keep * size)], 1.0) for size in (16, 32, 32)]


def once(way: str, seed: int) -> dict[str, float]:
    """Choose channels in one way, train, and judge."""
    torch.manual_seed(seed)
    model, chance, (x, y) = Nodes(), torch.Generator().manual_seed(seed), digits.pictures("train")
    tried = [masks(chance, 1.0 if way == "dense" else KEEP) for _ in range(1 if way in ("dense", "random mask") else TRIED)]
    model.train()
    first = [_before(model, each, (x[:256], y[:256])) for each in tried]
    model.masks = tried[first.index(min(first))]
    curve = learnt(model, ((x[places], y[places]) for places in drawn(len(x), 64, seed)), classes, 1e-2, STEPS)
    return {"curve": curve, "loss before training": min(first), **worth(model)}


@torch.no_grad()
def _before(model: Nodes, chosen: list[torch.Tensor], batch: tuple[torch.Tensor, torch.Tensor]) -> float:
    model.masks = chosen
    return float(nn.functional.cross_entropy(model(batch[0]), batch[1]))


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    rows = [
        row(way, [kept(f"nodes {way}, seed {seed}", functools.partial(once, way, seed)) for seed in setting.seeds])
        for way in (setting.method, *setting.baselines, *setting.beside)
    ]
    better = less(rows[1], rows[0])
    conditions = {"the search finds lower losses before training": min(less(rows[1], rows[0], "loss before training")) > 0}
    figures = {"by how much the best of the search is ahead after training": better}
    show(result(CLAIM, kept, rows, [NEAR - each for each in better], figures, conditions, DATA))


if __name__ == "__main__":
    main()
