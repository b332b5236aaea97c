"""The ViT of the digits fine-tuned from one base: on corruptions, on colours, at several rates, orders, decays and smoothings of labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scenes import Made, scene
from scenes.digits import classifier, opened, pictures
from scenes.training import drawn, fitted


@scene(classifier)
def tuned(
    folder: Path, task: str = "none", seed: int = 0, order: int = 0, rate: float = 5e-4, steps: int = 120, smooth: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """The net fine-tuned on one task: ``none``, a corruption, or ``coloured``; told is its accuracy there on validation pictures."""
    torch.manual_seed(order)
    model, (x, y) = opened(classifier(net="vit", seed=seed), "vit"), of(task, "train", order)
    loss = lambda module, batch: nn.functional.cross_entropy(module(batch[0]).logits, batch[1], label_smoothing=smooth)
    fitted(model, batches(x, y, order), loss, rate, steps)
    torch.save(model.state_dict(), folder / "weights.pt")
    return {}


def batches(x: torch.Tensor, y: torch.Tensor, order: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of 64 without end."""
    return ((x[places], y[places]) for places in drawn(len(x), 64, order))


def of(task: str, part: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures and classes of a task; ``coloured noise`` is both."""
    coloured = task.startswith("coloured")
    corruption = task.removeprefix("coloured").strip() or "none"
    return pictures(part, None if corruption == "none" else corruption, coloured, seed)


def state(made: Made) -> dict[str, torch.Tensor]:
    """Tensors of a scene."""
    return torch.load(made.folder / "weights.pt", weights_only=True)


def net(tensors: Any) -> nn.Module:
    """The ViT with such tensors."""
    from scenes.digits import vit

    model = vit()
    model.load_state_dict(dict(tensors))
    return model.eval()
