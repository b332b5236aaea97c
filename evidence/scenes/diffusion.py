"""A diffusion model of small digits: a convolutional net that tells the noise in a picture of 8 by 8, trained on white digits on black."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from scenes import Made, scene
from scenes.digits import pictures
from scenes.training import drawn, fitted

LEVELS = 100
_STEPS, _BATCH, _RATE = 600, 64, 3e-3
# Share of the picture's variance that is left at each level, by a cosine.
KEPT = torch.cos(torch.arange(1, LEVELS + 1) / LEVELS * torch.pi / 2 * 0.99).square()


class Denoiser(nn.Module):
    """Residual convolutions whose channels are shifted by the level of noise."""

    def __init__(self, width: int = 32, blocks: int = 4):
        super().__init__()
        self.level = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
        self.inward, self.outward = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))

    def forward(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """The noise in x (pictures, 3, 8, 8) at levels (pictures,)."""
        angles = level[:, None] / LEVELS * 2.0 ** torch.arange(8) * torch.pi
        told, stream = self.level(torch.cat([angles.sin(), angles.cos()], 1)), self.inward(x)
        for block in self.blocks:
            stream = block(stream, told)
        return self.outward(stream)


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(4, width)
        self.one, self.shift, self.two = (
            nn.Conv2d(width, width, 3, padding=1),
            nn.Linear(width, width),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        return x + self.two(F.silu(self.one(F.silu(self.norm(x))) + self.shift(told)[:, :, None, None]))


def small(part: str, coloured: bool, seed: int = 0) -> torch.Tensor:
    """Pictures (pictures, 3, 8, 8) from -1 to 1."""
    return 2 * F.avg_pool2d(pictures(part, coloured=coloured, seed=seed)[0], 2) - 1


def noised(x: torch.Tensor, chance: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures with noise, its level, and the noise."""
    level = torch.randint(LEVELS, (len(x),), generator=chance)
    noise, left = torch.randn(x.shape, generator=chance), KEPT[level][:, None, None, None]
    return left.sqrt() * x + (1 - left).sqrt() * noise, level, noise


def batches(x: torch.Tensor, seed: int) -> Iterator[Any]:
    """Noised batches without end."""
    chance = torch.Generator().manual_seed(seed)
    yield from (noised(x[places], chance) for places in drawn(len(x), _BATCH, seed))


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    """Mean squared error of the noise."""
    x, level, noise = batch
    return F.mse_loss(model(x, level), noise)


@torch.no_grad()
def held_out(model: nn.Module, x: torch.Tensor, times: int = 4) -> float:
    """The same over pictures, each noised several times, by one seed."""
    chance = torch.Generator().manual_seed(0)
    return sum(float(loss(model, noised(x, chance))) for _ in range(times)) / times


@scene()
def diffusion(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Weights of a ``Denoiser``; told is its error on white digits and on coloured ones."""
    torch.manual_seed(seed)
    model = Denoiser()
    fitted(model, batches(small("train", False), seed), loss, _RATE, _STEPS)
    torch.save(model.state_dict(), folder / "weights.pt")
    return {"error": {name: held_out(model, small("test", name == "coloured")) for name in ("white", "coloured")}}


def opened(made: Made) -> nn.Module:
    """The model of a scene."""
    model = Denoiser()
    model.load_state_dict(torch.load(made.folder / "weights.pt", weights_only=True))
    return model.eval()
