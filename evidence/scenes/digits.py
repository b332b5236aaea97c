"""Scikit-learn's digits as colour pictures, with corruptions and colours, as a set and as a stream; a convolutional net and a ViT trained on them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from scenes import Made, scene
from scenes.training import classes, drawn, fitted

SIDE = 16
_PARTS = {"train": slice(0, 1000), "validation": slice(1000, 1300), "test": slice(1300, None)}


@functools.cache
def _plain() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    pictures = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    large = F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return large[order], torch.tensor(found.target)[order]


def pictures(part: str, corruption: str | None = None, coloured: bool = False, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (pictures, 3, 16, 16) from 0 to 1 and classes: 1000 to train, 300 to choose, 497 to report; white on black where not coloured."""
    grey, labels = (each[_PARTS[part]] for each in _plain())
    chance = torch.Generator().manual_seed(seed)
    made = painted(grey, chance)[0] if coloured else grey.expand(-1, 3, -1, -1)
    return (made if corruption is None else CORRUPTIONS[corruption](made, chance)).clamp(0, 1).contiguous(), labels


COLOURS = torch.tensor([[1, 0, 0], [0, 1, 0], [0.2, 0.4, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1]], dtype=torch.float32)


def painted(grey: torch.Tensor, chance: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures with a digit of one of ``COLOURS`` on a ground of a third of another's strength, and which colour the digit has."""
    front = torch.randint(len(COLOURS), (len(grey),), generator=chance)
    ground = (front + torch.randint(1, len(COLOURS), (len(grey),), generator=chance)) % len(COLOURS)
    one, other = COLOURS[front][:, :, None, None], COLOURS[ground][:, :, None, None] / 3
    return grey * one + (1 - grey) * other, front


def _blurred(x: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    return F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), 5, 1)


def _turned(x: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    angles = (torch.rand(len(x), generator=chance) * 2 - 1) * 0.7
    cosine, sine, none = angles.cos(), angles.sin(), torch.zeros(len(x))
    turns = torch.stack([torch.stack([cosine, -sine, none], 1), torch.stack([sine, cosine, none], 1)], 1)
    return F.grid_sample(x, F.affine_grid(turns, list(x.shape), align_corners=False), align_corners=False)


def _covered(x: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    rows, columns = (torch.randint(2, SIDE - 6, (len(x), 1), generator=chance) for _ in range(2))
    at = torch.arange(SIDE)
    inside = ((at >= rows) & (at < rows + 5))[:, None, :, None] & ((at >= columns) & (at < columns + 5))[:, None, None, :]
    return x.masked_fill(inside, 0.5)


CORRUPTIONS: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "noise": lambda x, chance: x + 0.35 * torch.randn(x.shape, generator=chance),
    "blur": _blurred,
    "contrast": lambda x, chance: 0.5 + 0.25 * (x - 0.5),
    "inverted": lambda x, chance: 1 - x,
    "turned": _turned,
    "covered": _covered,
}


def stream(names: tuple[str, ...] = tuple(CORRUPTIONS), batch: int = 32, seed: int = 0) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Batches of test pictures, one corruption after the other: its name, pictures, classes."""
    for place, name in enumerate(names):
        x, y = pictures("test", name, seed=seed + place)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed + place))
        for some in order.split(batch):
            yield name, x[some], y[some]


class Conv(nn.Module):
    """Three convolutions with batch norm, a mean over places, a linear head; 10,000 parameters at a width of 16."""

    def __init__(self, width: int = 16, classes: int = 10):
        super().__init__()
        sizes = [3, width, 2 * width, 2 * width]
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(i, o, 3, padding=1, stride=1 + (n > 0), bias=False), nn.BatchNorm2d(o), nn.ReLU())
                for n, (i, o) in enumerate(itertools.pairwise(sizes))
            )
        )
        self.head = nn.Linear(2 * width, classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What the head is given (pictures, 2 width)."""
        return self.body(x).mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.head(self.features(x))


def vit(width: int = 64, layers: int = 4) -> nn.Module:
    """A ViT of Transformers, patches of 4 by 4."""
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            image_size=SIDE, patch_size=4, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=2 * width,
            num_labels=10, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


_NETS: dict[str, tuple[Callable[[], nn.Module], float, int]] = {"conv": (Conv, 1e-2, 300), "vit": (vit, 2e-3, 500)}


@scene()
def classifier(folder: Path, net: str = "conv", seed: int = 0) -> dict[str, Any]:
    """A net trained on white digits on black: ``conv`` or ``vit``; told is its accuracy on each corruption, and on none."""
    make, rate, steps = _NETS[net]
    torch.manual_seed(seed)
    model, (x, y) = make(), pictures("train")
    fitted(model, ((x[places], y[places]) for places in drawn(len(x), 64, seed)), classes, rate, steps)
    torch.save(model.state_dict(), folder / "weights.pt")
    return {"accuracy": {str(name): accuracy(model, *pictures("test", name)) for name in (None, *CORRUPTIONS)}}


def opened(made: Made, net: str = "conv") -> nn.Module:
    """The net of a scene."""
    model = _NETS[net][0]()
    model.load_state_dict(torch.load(made.folder / "weights.pt", weights_only=True))
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Of many pictures (pictures, classes)."""
    return torch.cat([getattr(found, "logits", found) for found in (model(some) for some in x.split(256))])


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of pictures whose class is told."""
    return float((logits(model, x).argmax(1) == y).float().mean())
