"""The head of a GGUF file, to the byte: keys with their values, and where each tensor lies."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Value = bool | int | float | str | Sequence["Value"]

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9


@dataclass(frozen=True)
class Place:
    """One tensor in the head: its shape as the model has it, the number of its type, and its bytes."""

    name: str
    shape: tuple[int, ...]
    type: int
    nbytes: int


def aligned(count: int) -> int:
    """``count`` bytes with what is added so that the next tensor begins where one may."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def place_bytes(name: str, dimensions: int) -> int:
    """Bytes that a tensor takes in the head."""
    return 8 + len(name.encode()) + 4 + 8 * dimensions + 4 + 8


def head(values: Mapping[str, Value], places: Sequence[Place]) -> bytes:
    """Everything before the first tensor, with what aligns it."""
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(places), len(values))]
    for key, value in values.items():
        kind = kind_of(value)
        parts += [_text(key), struct.pack("<I", kind), _written(value, kind)]
    offset = 0
    for place in places:
        shape = [*reversed(place.shape)]
        parts += [_text(place.name), struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, place.type, offset)]
        offset += aligned(place.nbytes)
    found = b"".join(parts)
    return found.ljust(aligned(len(found)), b"\0")


def kind_of(value: Value) -> int:
    """The number of a value's type; whole numbers in lists have a sign, alone none."""
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, int):
        return UINT32 if value >= 0 else INT32
    if isinstance(value, float):
        return FLOAT32
    return STRING if isinstance(value, str) else ARRAY


def _written(value: Value, kind: int) -> bytes:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bool | int | float):
        return struct.pack({BOOL: "<?", UINT32: "<I", INT32: "<i", FLOAT32: "<f"}[kind], value)
    inner = kind_of(value[0]) if value else STRING  # merges of a tokenizer that has none
    inner = INT32 if inner == UINT32 else inner
    return struct.pack("<IQ", inner, len(value)) + b"".join(_written(item, inner) for item in value)


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(encoded)) + encoded
