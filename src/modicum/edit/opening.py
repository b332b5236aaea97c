"""A model opened to be edited: its layers that facts are written to, found by structure, and the text whose behaviour is protected."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.core.files import cache_folder
from modicum.core.unit import Unit
from modicum.edit.taught import Taught
from modicum.models.structure import find_blocks
from modicum.models.trainable import trainable
from modicum.models.weights import Weights


def taught(module: nn.Module, tokenizer: Any, sequences: torch.Tensor, *, longest: int = 32, name: str = "") -> Taught:
    """A causal language model as editors see it; with its hash as ``name``, covariances are kept between runs."""
    layers, blocks, others = _layers(module)
    kept = Kept(name, sequences) if name else None
    positions = getattr(getattr(module, "config", None), "max_position_embeddings", None)
    return Taught(module, tokenizer, layers, blocks, sequences, longest, kept, positions, others)


def _layers(module: nn.Module) -> tuple[dict[str, nn.Module], dict[str, nn.Module], dict[str, nn.Module]]:
    """Of each block the linear layer that takes the widest input, which is the last of its feed-forward part; the block's module; other layers."""
    units = trainable(module)
    layers, blocks, others = dict[str, nn.Module](), dict[str, nn.Module](), dict[str, nn.Module]()
    for prefix, block in find_blocks(module, Weights(module)).items():
        inside = {name: units[name] for name in block.parameters if name in units and units[name].kind in ("linear", "conv1d")}
        if inside and (name := _widest(inside)):
            layers[name], blocks[name] = module.get_submodule(units[name].module), module.get_submodule(prefix)
        others |= {name: module.get_submodule(unit.module) for name, unit in inside.items() if name not in layers}
    order = sorted(layers, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
    return {name: layers[name] for name in order}, {name: blocks[name] for name in order}, others


def _widest(units: Mapping[str, Unit]) -> str:
    """The last of the layers with the most columns for a row."""
    return max(units, key=lambda name: (units[name].shape[1] / units[name].shape[0], list(units).index(name)))


class Kept(dict):
    """Covariances by layer in the user's cache, under the hash of the model and of the text; where they cannot be kept, none are."""

    def __init__(self, model: str, sequences: torch.Tensor):
        from modicum.delta.delta import digest

        super().__init__()
        self.folder = cache_folder() / "edit" / f"{model[:32]}-{digest(sequences)[:16]}"

    def __contains__(self, name: object) -> bool:
        if not super().__contains__(name) and (found := self._read(str(name))) is not None:
            super().__setitem__(name, found)
        return super().__contains__(name)

    def __setitem__(self, name: str, value: torch.Tensor) -> None:
        super().__setitem__(name, value)
        self._write(name, value)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _read(self, name: str) -> torch.Tensor | None:
        from safetensors.torch import load_file

        try:
            found = load_file(self._path(name))["covariance"]
        except Exception:  # whatever a file that is not whole makes a reader raise
            return None
        return found if found.ndim == 2 and found.dtype == torch.float32 and bool(torch.isfinite(found).all()) else None

    def _write(self, name: str, value: torch.Tensor) -> None:
        import contextlib

        from safetensors.torch import save_file

        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = self._path(name).with_suffix(".new")
            save_file({"covariance": value.contiguous()}, partial)
            partial.replace(self._path(name))
