"""What safetensors files are made of: dtypes by their codes, what a header may say, and how a wrong one is told."""

from __future__ import annotations

import difflib
import errno
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeGuard

import torch

from modicum.core.errors import ModelError

Wanted = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


# In the order in which the safetensors library (0.8) lays tensors out: wide types first, so that every tensor is aligned.
DTYPES: dict[str, torch.dtype] = {
    code: getattr(torch, attribute)
    for code, attribute in (
        ("U64", "uint64"),
        ("I64", "int64"),
        ("F64", "float64"),
        ("C64", "complex64"),
        ("F32", "float32"),
        ("U32", "uint32"),
        ("I32", "int32"),
        ("BF16", "bfloat16"),
        ("F16", "float16"),
        ("U16", "uint16"),
        ("I16", "int16"),
        ("F8_E5M2FNUZ", "float8_e5m2fnuz"),
        ("F8_E4M3FNUZ", "float8_e4m3fnuz"),
        ("F8_E8M0", "float8_e8m0fnu"),
        ("F8_E4M3", "float8_e4m3fn"),
        ("F8_E5M2", "float8_e5m2"),
        ("I8", "int8"),
        ("U8", "uint8"),
        ("BOOL", "bool"),
    )
    if hasattr(torch, attribute)
}


CODES = {dtype: code for code, dtype in DTYPES.items()}


RANK = {dtype: rank for rank, dtype in enumerate(CODES)}


MAX_HEADER = 100_000_000  # bytes; the safetensors library refuses longer ones too


MAX_COUNT = 2**63 - 1  # torch counts bytes and strides in signed 64 bits


PIECE = 64 * 2**20  # bytes moved by one system call, which bounds what a copy from another device holds


short = reprlib.Repr()  # hostile names and values must not fill a screen


short.maxstring = 200


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies: its dtype, its shape, and the bytes ``begin`` to ``end`` of the file (absolute offsets)."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's values."""
        return self.end - self.begin


def checked_metadata(metadata: object, who: str) -> dict[str, str]:
    """Metadata as the format has it, text by text. Raises ``ModelError`` for anything else."""
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for pair in metadata.items() for text in pair):
        raise ModelError(f"{who}: __metadata__ must map text to text, got {short.repr(metadata)}.")
    return metadata


def are_counts(value: object) -> TypeGuard[list[int]]:
    """Whether this is a list of whole numbers from 0; truth values do not count."""
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def size_of(dtype: torch.dtype, shape: Iterable[int], who: str) -> int:
    """Bytes of such a tensor. Strides must fit in 64 bits too, so an axis of length 0 does not excuse the others."""
    bound = dtype.itemsize
    empty = False
    for number in shape:
        bound *= max(number, 1)
        empty |= number == 0
        if bound > MAX_COUNT:
            raise ModelError(f"{who} must be of a size that 64 bits can count, and its shape is {short.repr(shape)}.")
    return 0 if empty else bound


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, where they lie."""
    return tensor.flatten().view(torch.uint8).numpy().data


class Room:
    """Memory that tensors are read into one after the other: each of a dtype takes the place of the one before it."""

    def __init__(self) -> None:
        self._held: dict[torch.dtype, tuple[torch.Tensor, memoryview]] = {}

    def of(self, dtype: torch.dtype, count: int) -> tuple[torch.Tensor, memoryview]:
        """A tensor (count,), and its bytes."""
        held = self._held.get(dtype)
        if held is None or len(held[0]) < count:
            # The device is named because loaders run under torch.device("meta"), which would leave nothing to read into.
            tensor = torch.empty(count, dtype=dtype, device="cpu")
            held = self._held[dtype] = tensor, raw_bytes(tensor)
        return held if len(held[0]) == count else (held[0][:count], held[1][: count * dtype.itemsize])


def unknown(who: str, name: str, known: Iterable[str]) -> ModelError:
    """What is said of a tensor that is not there."""
    # Models have thousands of tensors: near names are offered, never the whole list.
    close = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(map(short.repr, close))}?" if close else ""
    return ModelError(f"{who}: must hold the tensor asked for, and it holds no {short.repr(name)}.{hint}")


@contextmanager
def system_errors(who: str) -> Iterator[None]:
    """Tell what the system refuses as a ``ModelError``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ModelError(f"{who}: there is no space left on the disk. Free some, or write elsewhere.") from error
        raise ModelError(f"{who}: must be readable or writable here, and the system says: {error.strerror or error}.") from error
