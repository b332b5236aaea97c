"""An adapter's folder as it lies there: settings that are checked when they are read, and tensors that must all be used."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from modicum.core.errors import ModelError, quoted
from modicum.core.files import read_json
from modicum.core.tensorfile import TensorFile
from modicum.core.unit import Unit
from modicum.forms import Base, Form

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_MOST = 16 << 20  # bytes of the settings
_LONGEST = 2000  # characters of a pattern
# A group that is repeated, which can take forever to match.
_ENDLESS = re.compile(r"\)\s*[*+{]")


@dataclass(frozen=True)
class Adapter:
    """Settings and tensors of a folder; names of tensors without the prefix that all have. ``shared`` are those of no layer."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]
    shared: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """What lies in a folder. Raises ``ModelError``."""
        try:
            config = read_json(folder / CONFIG, _MOST)
            if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
                raise ValueError("it names no peft_type")
        except ValueError as error:
            raise ModelError(f"{folder / CONFIG}: must hold the settings of an adapter ({quoted(error)}). Save the adapter anew.") from None
        if not (folder / TENSORS).is_file():
            raise ModelError(f"{folder}: must hold {TENSORS}, does not. Save the adapter as safetensors.")
        with TensorFile(folder / TENSORS) as file:
            tensors = {name.removeprefix(PREFIX): file.read(name) for name in file.entries}
            if len(tensors) != len(file.entries):
                raise ModelError(f"{folder / TENSORS}: names the same tensor twice. Save the adapter anew.")
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise ModelError(f"{folder / TENSORS}: {quoted(name)} must be finite, holds NaN or Inf. Train the adapter anew.")
        return cls(folder, config, tensors)

    def error(self, sentence: str) -> ModelError:
        """What to raise where this folder is not as it must be."""
        return ModelError(f"{self.folder}: {sentence}")

    def number(self, name: str, default: float | None = None) -> float:
        """A setting that is a finite number. Raises ``ModelError``."""
        return self._checked(name, self.config.get(name, default))

    def flag(self, name: str) -> bool:
        """A setting that is on or off, off where it is not told. Raises ``ModelError``."""
        value = self.config.get(name)
        if value not in (None, True, False):
            raise self.error(f"{name} must be true or false, is {quoted(repr(value))}. Correct {CONFIG}.")
        return bool(value)

    def names(self, name: str) -> list[str] | str:
        """A setting that is one pattern, or a list of names. Raises ``ModelError``."""
        value = self.config.get(name)
        if isinstance(value, str):
            return value
        value = [] if value is None else value
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.error(f"{name} must list names, is {quoted(repr(value))}. Correct {CONFIG}.")
        return value

    def of_layer(self, table: str, module: str, default: str, fallback: float | None = None) -> float:
        """A number for one layer: the first pattern of a ``table`` that its name ends with, or the ``default`` setting. Raises ``ModelError``."""
        patterns = self.config.get(table) or {}
        if not isinstance(patterns, dict):
            raise self.error(f"{table} must map names to numbers, is {quoted(repr(patterns))}. Correct {CONFIG}.")
        for pattern, value in patterns.items():
            if self.matches(rf"(.*\.)?({pattern})$", module, whole=False):
                return self._checked(f"{table}[{pattern}]", value)
        return self.number(default, fallback)

    def matches(self, pattern: str, name: str, *, whole: bool = True) -> bool:
        """Whether a regular expression of the settings fits a name. Raises ``ModelError`` for one that cannot be matched in any time."""
        told = pattern.removeprefix(r"(.*\.)?(").removesuffix(")$")
        try:
            if len(told) > _LONGEST or _ENDLESS.search(told):
                raise re.error("it repeats a group")
            return bool((re.fullmatch if whole else re.match)(pattern, name))
        except (re.error, OverflowError, RecursionError) as error:
            raise self.error(f"the pattern {quoted(repr(told))} must be one that names are matched with ({error}). Name modules.") from None

    def _checked(self, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9 or not math.isfinite(value):
            raise self.error(f"{name} must be a number, is {quoted(repr(value))}. Correct {CONFIG}.")
        return value


class Layer:
    """One layer that an adapter changes: its unit of the base, its bias, and its tensors by part; what is taken is ticked off."""

    def __init__(self, adapter: Adapter, module: str, unit: Unit, bias: Unit | None, weight: Any):
        self.adapter, self.module, self.unit, self.bias, self.base_weight = adapter, module, unit, bias, weight
        self.parts: dict[str, torch.Tensor] = {}
        self.taken: set[str] = set()
        self.leaf: Form = Base(unit.shape, unit.dtype, unit.name)
        self.bias_leaf: Form | None = None if bias is None else Base(bias.shape, bias.dtype, bias.name)

    @property
    def rows(self) -> int:
        """Outputs, or entries of a table."""
        return self.unit.shape[0]

    @property
    def columns(self) -> int:
        """Inputs, or a table's width."""
        return self.unit.shape[1]

    def take(self, part: str, *shape: int) -> torch.Tensor:
        """A tensor in float32 in that shape, of whatever axes it is stored in; -1 stands for any size. Raises ``ModelError``."""
        if part not in self.parts:
            raise self.adapter.error(f"must hold {self.module}.{part}, does not. Save the adapter anew.")
        tensor = self.parts[part]
        stored = tuple(tensor.shape)
        wanted = math.prod(size for size in shape if size >= 0)
        fits = (
            tensor.is_floating_point()
            and tensor.ndim
            and (tensor.numel() == wanted if -1 not in shape else tensor.numel() % max(wanted, 1) == 0)
        )
        if fits and len(shape) > 1:
            fits = (shape[0] in (-1, stored[0])) and (tensor.ndim > 2 or stored[1:] == shape[1:] or -1 in shape[1:])
        if not fits:
            told = " × ".join("any" if size < 0 else str(size) for size in shape)
            raise self.adapter.error(f"{self.module}.{part} must have shape {told}, has {stored} of {tensor.dtype}. Name its own base.")
        self.taken.add(part)
        return tensor.float().reshape(shape)

    def plain(self) -> None:
        """Raise ``ModelError`` where not every output sees every input, as in grouped convolutions."""
        if self.unit.groups > 1:
            raise self.adapter.error(f"{self.module}: is a convolution in groups, which this kind is not read for. Merge it with PEFT.")

    def linear(self) -> None:
        """Raise ``ModelError`` where the layer is not one that multiplies by a matrix."""
        if self.unit.kind not in ("linear", "conv1d"):
            raise self.adapter.error(
                f"{self.module}: is of kind {self.unit.kind}, and this adapter is read for linear layers. Merge it with PEFT."
            )
