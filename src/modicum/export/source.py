"""Opening what a user names as a model: a file for llama.cpp, or whatever ``open_model`` opens."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from modicum.export.gguf.opened import open_gguf
from modicum.models.located import is_gguf
from modicum.models.model import Model
from modicum.models.open import open_model


def open_source(
    source: str | Path | nn.Module | Model, *, allow_pickle: bool = False, trust_remote_code: bool = False, allow_quantized_source: bool = False,
) -> Model:  # fmt: skip
    """Open a GGUF file, whose weights are read as what its blocks stand for, or what ``open_model`` does. Raises ``ModelError``."""
    if isinstance(source, str | Path) and is_gguf(source):
        return open_gguf(Path(source), allow_quantized_source=allow_quantized_source)
    return open_model(source, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code, allow_quantized_source=allow_quantized_source)
