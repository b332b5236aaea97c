"""Retraining: a model that never saw what is to be forgotten, the standard that others are held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from typing_extensions import override

from modicum.core.errors import ModelError
from modicum.core.settings import param
from modicum.forget.forgetter import Forgetter, Rows, updated
from modicum.train.rows import stacked


@dataclass(frozen=True, kw_only=True)
class Retrain(Forgetter):
    """Layers begin anew as their classes begin (``reset_parameters``; of Transformers' models by their config), and are trained on the rows to
    retain alone.

    Raises ``ModelError`` for a parameter that its module cannot begin anew.
    """

    named: ClassVar[bool] = True

    steps: int = param(300, "updates", between=(1, 10**9))
    rate: float = param(1e-2, "learning rate of Adam, falling to 0", between=(1e-12, 10.0))
    batch: int = param(64, "rows in an update", between=(1, 10**6))

    @override
    def forget(self, module: nn.Module, rows: Rows) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rows.seed)
            _begin(module)
        module.train()
        try:
            updated(
                module, len(rows.retain), lambda places, step: rows.loss(module, stacked([rows.retain[place] for place in places])).mean(),
                steps=self.steps, rate=self.rate, batch=self.batch, seed=rows.seed,
            )  # fmt: skip
        finally:
            module.eval()


def _begin(module: nn.Module) -> None:
    """Draw all parameters anew. Raises ``ModelError`` for one that its module cannot begin."""
    if hasattr(module, "init_weights") and hasattr(module, "config"):
        module.load_state_dict(type(module)(module.config).float().state_dict())
        return
    for name, inner in module.named_modules():
        if callable(reset := getattr(inner, "reset_parameters", None)):
            reset()
        elif any(True for _ in inner.parameters(recurse=False)):
            raise ModelError(f"{name}: must have reset_parameters to be trained anew, has not. Train a reference yourself.")
