"""A GGUF file read: every count and length is held against the file's size before anything of that size is made."""

from __future__ import annotations

import math
import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from modicum.core.errors import ModelError, quoted
from modicum.core.ggml import TYPES
from modicum.export.gguf.fields import ALIGNMENT, MAGIC
from modicum.forms.ggml import decode

# Types of values in the head that have one size: how each is read.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
# The most items of a list, keys and tensors that a head can name: far more than any model has.
_MOST, _NAMED, _LONGEST = 1 << 22, 1 << 16, 1 << 16
_DENSE = {0: (torch.float32, "f32"), 1: (torch.float16, "f16"), 30: (torch.bfloat16, "bf16")}
_BLOCKS = {type.number: type for type in TYPES.values()}


@dataclass(frozen=True)
class Stored:
    """One tensor as the head describes it: its shape as a model has it, its type, and where its bytes are."""

    name: str
    shape: tuple[int, ...]
    type: str
    number: int
    start: int
    nbytes: int

    @property
    def quantized(self) -> bool:
        """Whether its numbers are rounded to blocks."""
        return self.number in _BLOCKS


class GgufFile:
    """A file's values and tensors; tensors are read when asked for. Raises ``ModelError`` for a file that lies."""

    def __init__(self, path: Path):
        self.path = path
        self.values: dict[str, Any] = {}
        self.tensors: dict[str, Stored] = {}
        try:
            with _opened(path) as file:
                self._size = os.fstat(file.fileno()).st_size
                self._take: Callable[[int], bytes] = file.read
                self._at = 0
                self._head()
        except OSError as error:
            raise ModelError(f"{path}: must be a GGUF file, cannot be read ({error.strerror or error}). Check the path.") from None
        except (ValueError, struct.error, OverflowError) as error:
            raise ModelError(f"{path}: must be a GGUF file that is whole ({quoted(error)}). Fetch it again.") from None

    # The head

    def _bytes(self, count: int) -> bytes:
        if count > self._size - self._at:
            raise ValueError(f"{count} bytes at {self._at} are beyond its end")
        self._at += count
        return self._take(count)

    def _number(self, how: str) -> Any:
        return struct.unpack(how, self._bytes(struct.calcsize(how)))[0]

    def _text(self, longest: int | None = None) -> str:
        count = self._number("<Q")
        if longest is not None and count > longest:
            raise ValueError(f"a name of {count} bytes at {self._at}")
        return self._bytes(count).decode("utf-8", "replace" if longest is None else "strict")

    def _head(self) -> None:
        if self._bytes(4) != MAGIC:
            raise ValueError("it does not begin as one")
        if (version := self._number("<I")) not in _VERSIONS:
            raise ValueError(f"its version is {version}")
        tensors, values = self._number("<Q"), self._number("<Q")
        if tensors > _NAMED or values > _NAMED:
            raise ValueError(f"{tensors} tensors and {values} values are more than there can be")
        for _ in range(values):
            key = self._text(_LONGEST)
            if key in self.values:
                raise ValueError(f"{quoted(key)} comes twice")
            self.values[key] = self._value(self._number("<I"))
        found = [self._described() for _ in range(tensors)]
        align = self.values.get("general.alignment", ALIGNMENT)
        if type(align) is not int or align < 8 or align & (align - 1) or align > 1 << 16:
            raise ValueError(f"its alignment is {quoted(repr(align))}")
        self._placed(found, -(-self._at // align) * align, align)

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            raise ValueError(f"a value is of kind {kind}")
        inner, count = self._number("<I"), self._number("<Q")
        if inner not in _SCALARS and inner != _STRING:
            raise ValueError(f"a list is of kind {inner}")
        least = struct.calcsize(_SCALARS.get(inner, "<Q"))
        if count > _MOST or count * least > self._size - self._at:
            raise ValueError(f"a list of {count} items at {self._at} is beyond its end")
        if inner == _STRING:
            return [self._text() for _ in range(count)]
        return list(struct.unpack(f"<{count}{_SCALARS[inner][1]}", self._bytes(count * least)))

    def _described(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._text(_LONGEST), self._number("<I")
        if not 1 <= dimensions <= 4:
            raise ValueError(f"{quoted(name)} has {dimensions} axes")
        shape = tuple(reversed([self._number("<Q") for _ in range(dimensions)]))
        return name, shape, self._number("<I"), self._number("<Q")

    def _placed(self, found: list[tuple[str, tuple[int, ...], int, int]], data: int, align: int) -> None:
        end = 0
        for name, shape, number, offset in sorted(found, key=lambda one: one[3]):
            count = _bytes_of(name, shape, number)
            if name in self.tensors:
                raise ValueError(f"{quoted(name)} comes twice")
            if offset % align or offset < end or count > self._size - data - offset:
                raise ValueError(f"{quoted(name)} lies beyond its end, or on another tensor")
            end = offset + count
            type = _DENSE[number][1] if number in _DENSE else _BLOCKS[number].name
            self.tensors[name] = Stored(name, shape, type, number, data + offset, count)

    # Tensors

    @property
    def quantized(self) -> list[str]:
        """Types of tensors that are rounded to blocks."""
        return sorted({tensor.type for tensor in self.tensors.values() if tensor.quantized})

    def read(self, name: str) -> torch.Tensor:
        """What a tensor stands for, in float32."""
        tensor = self.tensors[name]
        with _opened(self.path) as file:
            file.seek(tensor.start)
            raw = torch.frombuffer(bytearray(file.read(tensor.nbytes)), dtype=torch.uint8)
        if len(raw) != tensor.nbytes:
            raise ModelError(f"{self.path}: has become shorter while it was read. Fetch it again.")
        if tensor.number in _DENSE:
            return raw.view(_DENSE[tensor.number][0]).float().reshape(tensor.shape)
        type, columns = _BLOCKS[tensor.number], tensor.shape[-1]
        return decode(raw.view(-1, type.row_bytes(columns)), type.name, columns).reshape(tensor.shape)


def _bytes_of(name: str, shape: tuple[int, ...], number: int) -> int:
    if not 0 < math.prod(shape) < 1 << 48:
        raise ValueError(f"{quoted(name)} has shape {shape}")
    if number in _DENSE:
        return math.prod(shape) * _DENSE[number][0].itemsize
    if number not in _BLOCKS:
        known = ", ".join([*(text for _, text in _DENSE.values()), *TYPES])
        raise ValueError(f"{quoted(name)} is of type number {number}, which is none of {known}")
    return math.prod(shape[:-1]) * _BLOCKS[number].row_bytes(shape[-1])


def _opened(path: Path) -> BinaryIO:
    """Open a file without waiting for anything but a disk. Raises ``ValueError`` for what is none."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError("it is no regular file")
    return os.fdopen(handle, "rb")
