"""The convolutional net of the digits, trained with all classes or without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from scenes import Made, scene
from scenes.digits import Conv, accuracy, classifier, pictures
from scenes.training import classes, drawn, fitted


@scene(classifier)
def without(folder: Path, gone: int = -1, seed: int = 0) -> dict[str, Any]:
    """The net trained by one seed on all digits but one; all of them at -1."""
    torch.manual_seed(seed)
    model, (x, y) = Conv(), pictures("train")
    x, y = x[y != gone], y[y != gone]
    fitted(model, ((x[places], y[places]) for places in drawn(len(x), 64, seed)), classes, 1e-2, 300)
    torch.save(model.state_dict(), folder / "weights.pt")
    return {"accuracy": accuracy(model, *pictures("test"))}


def opened(made: Made) -> Conv:
    """The net of a scene."""
    model = Conv()
    model.load_state_dict(torch.load(made.folder / "weights.pt", weights_only=True))
    return model.eval()
