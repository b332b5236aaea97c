"""A causal language model, however it is stored, opened to be worked on: as it lies on disk, and as a copy in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from modicum.core.errors import ModelError, SettingError
from modicum.export.loaded import loaded
from modicum.fit.over import dense_beneath
from modicum.measure.limits import require_positions
from modicum.models.located import locate
from modicum.models.model import Model
from modicum.models.open import model_class, open_model, read_config


@contextmanager
def working(model: str | Path, tokens: int) -> Iterator[tuple[Model, nn.Module]]:
    """The model, and its module in float32 and evaluation mode, on sequences of up to ``tokens``; of a compressed one what its loader has.

    Raises ``ModelError`` for a model that cannot be opened or predicts no next token; ``SettingError`` for sequences that are longer than it takes,
    or in which nothing follows.
    """
    if tokens < 2:
        raise SettingError(f"tokens: must be at least 2, so that a token follows another, got {tokens}.")
    with dense_beneath(locate(model)) as directory:
        source = open_model(directory)
        if not source.is_causal:
            raise ModelError(f"{model}: must be a causal language model, is a {type(source.module).__name__}. Name one that is.")
        require_positions(source, tokens)
        yield source, loaded(model_class(read_config(directory), str(model)), directory).float().eval()
