"""A model opened for treatment: its module, where its weights come from, and the blocks and units found in it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from modicum.core.errors import ModelError, quoted
from modicum.core.unit import Unit
from modicum.models.copying import copied
from modicum.models.quiet import hushed
from modicum.models.settled import Settled
from modicum.models.weights import Weights


@dataclass(frozen=True)
class Block:
    """One element of a repeated list of modules, such as a decoder layer; ``list_name`` is the list it stands in."""

    name: str
    list_name: str
    index: int
    parameters: tuple[str, ...]


@dataclass
class Model:
    """What ``open_model`` returns."""

    module: nn.Module
    weights: Weights
    blocks: dict[str, Block]
    units: dict[str, Unit]
    name: str = "module"
    directory: Path | None = None
    notes: list[str] = field(default_factory=list)
    trust_remote_code: bool = False
    opened: str = ""  # how it compares with what Transformers loads
    settled: Settled = field(default_factory=Settled, repr=False)  # effective weights that stand in the place of what computed them
    original: Model | None = field(default=None, repr=False)
    identity: str = ""  # hash of the model whose factors were moved, which this one still is

    @property
    def _of_transformers(self) -> bool:
        """Whether Transformers has a part in its class; where not, importing it, which takes seconds, tells nothing."""
        return any(base.__module__.startswith("transformers.") for base in type(self.module).__mro__)

    @property
    def config(self) -> Any:
        """Transformers' config of one of its own classes, or None for a plain module, whatever that calls its config."""
        cls = type(self.module)
        if self.directory is None and not self._of_transformers:
            return None
        import transformers

        known = isinstance(self.module, transformers.PreTrainedModel) and getattr(transformers, cls.__name__, None) is cls
        return self.module.config if known or self.directory is not None else None

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer beside the weights. Raises ``ModelError`` where there is none."""
        from transformers import AutoTokenizer

        files = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt")
        if self.directory is None or not any((self.directory / name).exists() for name in files):
            raise ModelError(
                f"{self.name}: has no tokenizer, which text needs. Give token batches from Python, or add the tokenizer's files."
            )
        try:
            with hushed():
                return AutoTokenizer.from_pretrained(self.directory, trust_remote_code=self.trust_remote_code)
        except Exception as error:
            raise ModelError(f"{self.name}: its tokenizer cannot be read ({quoted(error)}). Fetch the tokenizer's files again.") from None

    @property
    def stored(self) -> Model:
        """The same model in the dtypes that its weights are stored in, where this one computes in another."""
        return self.original or self

    def bytes_of(self, name: str) -> int:
        """Bytes of a parameter as stored."""
        return self.weights.held(name).numel() * self.weights.dtype(name).itemsize

    @property
    def parameters(self) -> int:
        """Number of distinct parameters, tied ones once."""
        return sum(self.weights.held(name).numel() for name in self.weights.names)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the distinct parameters as stored."""
        return sum(map(self.bytes_of, self.weights.names))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype that most weights are stored in, of those of real numbers. Raises ``ModelError`` where there are none."""
        sizes: dict[torch.dtype, int] = {}
        for name in self.weights.names:
            if (dtype := self.weights.dtype(name)).is_floating_point:
                sizes[dtype] = sizes.get(dtype, 0) + self.weights.held(name).numel()
        if not sizes:
            raise ModelError(f"{self.name}: must have weights that are real numbers, has none. There is nothing to compress.")
        return max(sizes, key=lambda dtype: sizes[dtype])

    @property
    def computed(self) -> torch.dtype:
        """Dtype that most weights are computed with."""
        return self.weights.turned.get(self.dtype, self.dtype)

    @property
    def files(self) -> list[Path]:
        """Weight files it was opened from; none for a module."""
        return list(getattr(getattr(self.weights, "shards", None), "files", []))

    def hash(self) -> str:
        """What tells it from another without reading a checkpoint whole: names, shapes, and file sizes and times, or all values."""
        if self.identity:
            return self.identity
        digest = hashlib.sha256()
        for name in self.weights.names:
            held = self.weights.held(name)
            digest.update(f"{name} {tuple(held.shape)} {self.weights.dtype(name)}".encode())
            if not self.weights.lazy:
                digest.update(self.weights.read(name).contiguous().reshape(-1).view(torch.uint8).numpy().data)
        for path in self.files:
            digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
        return digest.hexdigest()

    @cached_property
    def trunk(self) -> tuple[str, ...]:
        """Parameters outside all blocks, which stay in memory through a sweep."""
        inside = {name for block in self.blocks.values() for name in block.parameters}
        return tuple(name for name in self.weights.names if name not in inside)

    @property
    def is_causal(self) -> bool:
        """Whether it is a causal language model, whose default target is Transformers."""
        if not self._of_transformers:
            return False
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        return type(self.module).__name__ in set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())

    def twin(self) -> Model:
        """The same model with modules of its own and the tensors shared: two sweeps can then stand suspended side by side."""
        module = copied(self.module)
        return dataclasses.replace(self, module=module, weights=self.weights.over(module))

    def on(self, device: torch.device) -> Model:
        """The same model whose weights are loaded to ``device``, in modules of its own."""
        other = self.twin()
        other.weights = self.weights.on(other.module, device)
        return other

    def computing(self, turned: Mapping[torch.dtype, torch.dtype]) -> Model:
        """The same model whose weights of some dtypes are loaded in others, in modules of its own; as it is where that changes none."""
        stored = self.stored
        if not any(stored.weights.dtype(name) in turned for name in stored.weights.names):
            return stored
        other = stored.twin()
        other.weights, other.original = stored.weights.on(other.module, stored.weights.device, turned), stored
        other.module.register_forward_pre_hook(partial(_turned_inputs, turned), with_kwargs=True)
        return other

    def matrix(self, unit: Unit) -> torch.Tensor:
        """Matrix view (rows, columns) of a unit's original weight."""
        return unit.matrix(self.weights.read(unit.parameter))


def _turned_inputs(turned: Mapping[torch.dtype, torch.dtype], module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """What a module is called with, in the dtypes that it computes in; what is wider stays."""
    return tree_map_only(torch.Tensor, lambda value: value.to(turned.get(value.dtype, value.dtype)), (args, kwargs))
