"""Rows to forget and rows to retain, read from tables, and what both have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from modicum.core.errors import DataError, quoted
from modicum.core.tensorformat import raw_bytes
from modicum.data.answers import IGNORED, PAIRS
from modicum.data.files import read_text
from modicum.data.objects import objects
from modicum.data.splits import Batch

# What a prompt and its completion are called; the last as in MUSE.
_PAIRS = (*PAIRS, ("prompt", "gt"))


def read_rows(path: str | Path, tokenizer: Any, tokens: int) -> list[dict[str, torch.Tensor]]:
    """Rows of JSON lines or one JSON list, as TOFU and MUSE are published: a prompt and its completion, of which the completion counts, or a text,
    of which every token does. A file that ends in ``.txt`` is one text.

    A prompt and completion are called so, or ``question`` and ``answer``, or ``prompt`` and ``gt``; a text is a string, or stands under ``text``,
    and is divided where it has more than ``tokens``.

    *Shapes:* each row is ``input_ids``, ``attention_mask`` and ``labels``, int64 (1, tokens), padded; labels are -100 where nothing counts.
    Raises ``DataError`` for a row that is neither, has fewer than two tokens, or with prompt and completion more than ``tokens``.
    """
    path, found = Path(path), list[tuple[list[int], list[int]]]()
    plain = path.suffix.lower() == ".txt"
    for where, row in [(str(path), {"text": read_text(path).value})] if plain else objects(path, "data", texts="text"):
        found += _encoded(where, row, tokenizer, tokens)
    return [_padded(given, rest, tokens) for given, rest in found]


def _encoded(where: str, row: Mapping[str, Any], tokenizer: Any, tokens: int) -> list[tuple[list[int], list[int]]]:
    """Tokens that are given and that count, of the rows of one object."""
    pair = next((pair for pair in _PAIRS if set(pair) <= row.keys()), None)
    names = pair or ("text",)
    if not all(isinstance(row.get(name), str) and row[name] for name in names):
        shown = quoted(", ".join(map(str, row)) or "nothing")
        raise DataError(f"data: {where} must have texts as prompt and completion, or a text, has {shown}. Mend or remove it.")
    given = list(tokenizer(row[names[0]])["input_ids"]) if pair else []
    rest = list(tokenizer(row[names[-1]], add_special_tokens=not pair)["input_ids"])
    if (size := len(given) + len(rest)) < 2 or (pair and size > tokens):
        raise DataError(f"data: {where} must have 2 to {tokens} tokens, has {size}. Shorten it, or raise --tokens.")
    if pair:
        return [(given, rest)]
    return [([], rest[start : start + tokens]) for start in range(0, size, tokens) if size - start > 1]


def _padded(given: list[int], rest: list[int], tokens: int) -> dict[str, torch.Tensor]:
    size = len(given) + len(rest)
    ids, seen, labels = (
        torch.zeros(1, tokens, dtype=torch.int64),
        torch.zeros(1, tokens, dtype=torch.int64),
        torch.full((1, tokens), IGNORED),
    )
    ids[0, :size], seen[0, :size] = torch.tensor([*given, *rest]), 1
    labels[0, len(given) : size] = torch.tensor(rest)
    return {"input_ids": ids, "attention_mask": seen, "labels": labels}


def overlap(one: Sequence[Batch], other: Sequence[Batch]) -> int:
    """How many rows of one stand in the other too: the same tokens, whichever of them count, or the same inputs and class to the bit."""
    known = set(map(_fingerprint, other))
    return sum(_fingerprint(row) in known for row in one)


def distinct(rows: Sequence[Batch]) -> int:
    """How many different rows there are."""
    return len(set(map(_fingerprint, rows)))


def _fingerprint(row: Batch) -> bytes:
    parts = [row["input_ids"][row["attention_mask"].bool()]] if isinstance(row, dict) else list(row)
    found = hashlib.sha256()
    for part in parts:
        found.update(f"{part.dtype}{tuple(part.shape)}".encode())
        found.update(raw_bytes(part.detach().cpu().contiguous().reshape(-1)))
    return found.digest()
