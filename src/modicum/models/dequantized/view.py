"""The shards of a quantized checkpoint as if they held the dense weights: each is made when it is read, of its own parts alone."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from modicum.core.errors import ModelError, listed, quoted
from modicum.core.files import read_json
from modicum.core.tensorfile import Shards
from modicum.core.tensorformat import Entry
from modicum.models.dequantized.awq import Awq
from modicum.models.dequantized.bitsandbytes import Bitsandbytes
from modicum.models.dequantized.compressed_tensors import CompressedTensors
from modicum.models.dequantized.float8 import Float8
from modicum.models.dequantized.format import FLOATS, Format, Quantized
from modicum.models.dequantized.gptq import Gptq
from modicum.models.dequantized.mxfp4 import Mxfp4

# By the method that a config names.
FORMATS: Mapping[str, type[Format]] = {
    "compressed-tensors": CompressedTensors, "gptq": Gptq, "awq": Awq, "fp8": Float8, "fbgemm_fp8": Float8, "mxfp4": Mxfp4,
    "bitsandbytes": Bitsandbytes,
}  # fmt: skip
# Numbers about what goes into a layer or comes out of it, not about its weight.
_ACTIVATIONS = re.compile(r"(^|[._])(input|output|activation|[kqv])_(scale|zero_point|global_scale)(_ub)?$")


class Dequantized(Shards):
    """Shards whose quantized weights are read under the names and in the shapes of dense ones, in the model's ``dtype`` where that is known.

    *Raises*: ``ModelError`` where a weight's parts do not make one.
    """

    def __init__(self, directory: Path, said: Any, dtype: Any = None):
        super().__init__(directory)
        try:
            self._format = format_of(directory, said)
            self._dtype = dtype if dtype in FLOATS else None
            self._weights: dict[str, tuple[Quantized, dict[str, str]]] = {}
            self._shown: dict[str, Entry] = {}
            self.activations: list[str] = []
            self._find()
        except BaseException:
            self.close()
            raise

    def _find(self) -> None:
        names = super().names()
        known = frozenset(names)
        parts: dict[str, dict[str, str]] = defaultdict(dict)
        for key in names:
            if (found := self._format.owner(key, known)) is not None:
                parts[found[0]][found[1]] = key
            elif _ACTIVATIONS.search(key):
                self.activations.append(key)
            else:
                self._shown[key] = super().entry(key)
        for name, keys in parts.items():
            self._add(name, keys)

    def _add(self, name: str, keys: dict[str, str]) -> None:
        stored = {part: super(Dequantized, self).entry(key) for part, key in keys.items()}
        try:
            weight = self._format.weight(stored, lambda part: super(Dequantized, self).read(keys[part]))
        except ValueError as error:
            raise self._strange(name, error) from None
        if name in self._shown:
            raise self._strange(name, ValueError("it is there as it is, too"))
        if weight is None:
            (key,) = keys.values()
            self._shown[name] = super().entry(key)
            return
        dtype = self._dtype or next((entry.dtype for entry in stored.values() if entry.dtype in FLOATS), torch.bfloat16)
        self._weights[name] = weight, keys
        self._shown[name] = Entry(dtype, weight.shape, 0, math.prod(weight.shape) * dtype.itemsize)

    def _strange(self, name: str, error: ValueError) -> ModelError:
        return ModelError(
            f"{self.directory}: {quoted(name)} must be stored as {self._format.name} does, is not: {quoted(error)}. Fetch it again."
        )

    @override
    def names(self) -> list[str]:
        return list(self._shown)

    @override
    def __contains__(self, name: object) -> bool:
        return name in self._shown

    @override
    def entry(self, name: str) -> Entry:
        return self._shown[name] if name in self._shown else super().entry(name)

    @override
    def file_of(self, name: str) -> Path:
        return super().file_of(next(iter(self._weights[name][1].values())) if name in self._weights else name)

    @override
    def read(self, name: str) -> torch.Tensor:
        if name not in self._weights:
            return super().read(name)
        weight, keys = self._weights[name]
        try:
            value = weight.decode({part: super(Dequantized, self).read(key) for part, key in keys.items()})
        except ValueError as error:
            raise self._strange(name, error) from None
        return value.to(self._shown[name].dtype)

    @override
    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self.read(name)[start:stop].clone() if name in self._weights else super().read_rows(name, start, stop)

    @override
    def notes(self) -> Iterator[str]:
        yield from rounded_before({name: f"{weight.kind} ({self._format.name})" for name, (weight, _) in self._weights.items()})
        if self.activations:
            yield (
                f"{len(self.activations)} tensors of the checkpoint are about the inputs and outputs of layers, among them {self.activations[0]}: "
                "they are left out, what goes into a layer is not rounded"
            )


def format_of(directory: Path, said: Any) -> Format:
    """The format that a config's ``said`` part names. Raises ``ModelError`` where it cannot be read here."""
    told = said if isinstance(said, Mapping) else said.to_dict() if hasattr(said, "to_dict") else {}
    method = getattr(told.get("quant_method"), "value", told.get("quant_method"))
    if not isinstance(method, str) or method not in FORMATS:
        raise ModelError(
            f"{directory}: must not be quantized already but by {', '.join(FORMATS)}, is ({quoted(str(method))}). Start from the original checkpoint."
        )
    return FORMATS[method](told)


def decodable(directory: Path) -> bool:
    """Whether a folder's config says that its weights are quantized in a way that is read here."""
    try:
        format_of(directory, read_json(directory / "config.json")["quantization_config"])
    except (ModelError, ValueError, KeyError, TypeError):
        return False
    return True


def rounded_before(kinds: Mapping[str, str]) -> Iterator[str]:
    """Events that say which weights, by name, were held as what before."""
    for kind in dict.fromkeys(kinds.values()):
        names = [name for name, other in kinds.items() if other == kind]
        shown = _patterns(names, (name for name, other in kinds.items() if other != kind))
        yield (
            f"the original's weights were rounded before: {len(names)} came as {kind}, {listed(shown)}; what is lost is counted from what those "
            "stand for"
        )


def _patterns(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Names with stars for their numbers, where no other name would be meant too."""
    taken = {_starred(name) for name in others}
    return list(dict.fromkeys(name if _starred(name) in taken else _starred(name) for name in names))


def _starred(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
