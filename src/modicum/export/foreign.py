"""Directories that are no container of ours, loaded as their own loaders do."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from modicum.core.errors import ModelError, quoted
from modicum.core.files import require_inside
from modicum.core.tensorfile import Shards
from modicum.export.gguf.file import FILE
from modicum.export.gguf.loading import load_gguf
from modicum.export.loaded import scales_of_cache, with_cache
from modicum.models.open import model_class, read_config, skeleton
from modicum.models.quiet import hushed
from modicum.models.weights import CheckpointWeights


def load_other(directory: Path) -> nn.Module:
    """The model in a directory for Transformers or llama.cpp. Raises ``ModelError``."""
    if (directory / FILE).is_file() and not any(directory.glob("*.safetensors")):
        require_inside(directory)
        return load_gguf(directory)
    return _load_transformers(directory)


def _load_transformers(directory: Path) -> nn.Module:
    # Transformers would unpickle, follow links out of the directory, and fill what is missing with random numbers.
    config = read_config(directory)
    with Shards(directory) as shards:
        bare = skeleton(model_class(config, str(directory)), config, stored=len(shards.names()))
    if getattr(bare.config, "quantization_config", None) is None:
        with Shards(directory) as shards:
            CheckpointWeights(bare, shards)
    settings = {"dtype": "auto", "use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        with hushed():
            module, report = type(bare).from_pretrained(directory, **settings)  # type: ignore[attr-defined]
    except Exception as error:
        raise ModelError(f"{directory}: Transformers cannot load it ({quoted(error, 120)}).") from None
    for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
        if report.get(kind):
            raise ModelError(f"{directory}: must hold the model's weights, {kind} are such as {quoted(sorted(map(str, report[kind]))[0])}.")
    return with_cache(module, scales_of_cache(directory)).eval()
