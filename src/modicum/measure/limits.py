"""How much of data a model takes, and what of a batch may be too much, in words."""

from __future__ import annotations

import inspect

from torch import nn

from modicum.core.errors import SettingError
from modicum.data.splits import Batch
from modicum.models.model import Model


def require_positions(model: Model, tokens: int) -> None:
    """Raise ``SettingError`` where a window of text has more tokens than the model has places for."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else None
    most = getattr(config, "max_position_embeddings", None)
    for module in model.module.modules():  # a table that begins behind the number of the padding has as many places fewer
        if isinstance(module, nn.Embedding) and module.num_embeddings == most and module.padding_idx is not None:
            most -= module.padding_idx + 1
    if isinstance(most, int) and 0 < most < tokens:
        raise SettingError(
            f"tokens: a sequence must have at most the {most} that {model.name} has positions for, {tokens} came. Pass --tokens {most}."
        )


def extent_of(module: nn.Module, batch: Batch) -> str:
    """What of a batch can be too much for a model, in words."""
    named = batch.items() if isinstance(batch, dict) else zip(inspect.signature(module.forward).parameters, batch)
    found = {name: value for name, value in named if not value.is_floating_point() and not value.is_complex() and value.numel()}
    if [*found] == ["input_ids"]:
        return f"windows of {found['input_ids'].shape[-1]} tokens with ids up to {int(found['input_ids'].max())}"
    return " and ".join(f"{name} {list(value.shape)} with numbers up to {int(value.max())}" for name, value in found.items()) or "the data"


def limits_of(model: Model) -> str:
    """What a model's config says it takes, in words."""
    said = {"tokens": getattr(model.config, "vocab_size", None), "positions": getattr(model.config, "max_position_embeddings", None)}
    known = " and ".join(f"{count} {what}" for what, count in said.items() if count is not None)
    return f", which has {known}" if known else ", do not"
