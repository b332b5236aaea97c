"""Calibration text that the model writes itself."""

from __future__ import annotations

import torch

from modicum.core.budget import readable
from modicum.core.errors import BudgetError, SettingError
from modicum.data.own import written
from modicum.measure.settings import Settings
from modicum.models.model import Model


def written_by(model: Model, settings: Settings, windows: int) -> torch.Tensor:
    """Windows of token ids (windows, tokens). Raises ``SettingError`` where the model cannot write, ``BudgetError`` where it does not fit whole."""
    if not model.is_causal:
        raise SettingError(f"data self: {model.name} must be a causal language model to write text, is none. Give a text.")
    if settings.ram is not None and model.dense_bytes > settings.ram:
        raise BudgetError(
            f"data self: {model.name} must be in memory whole to write, takes {readable(model.dense_bytes)}; --ram allows "
            f"{readable(settings.ram)}. Give a text."
        )
    ends = [getattr(model.tokenizer, name, None) for name in ("bos_token_id", "eos_token_id")]
    begin = next((end for end in ends if end is not None), 0)
    whole = model.twin()
    whole.weights.load(whole.weights.names)
    return written(whole.module, windows, settings.tokens, begin=begin, seed=settings.seed, batch=settings.micro_batch)
