"""Prompts with a chosen and a rejected answer: pairs of which the first should become likelier than the second."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from modicum.core.errors import DataError
from modicum.data.answers import tokenized
from modicum.data.files import kind, read_text
from modicum.data.splits import WINDOW_SHARES, Batch, Splits, divided, parted
from modicum.data.tables import records, require_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COLUMNS = ("prompt", "chosen", "rejected")


def holds_preferences(path: Path) -> bool:
    """Whether a file is a table of prompts with a chosen and a rejected answer. Raises ``DataError`` for one that cannot be read."""
    if not path.is_file() or kind(path) not in (".jsonl", ".csv", ".tsv"):
        return False
    first = next(records(path, read_text(path)), None)
    return first is not None and set(_COLUMNS) <= first[1].keys()


def from_preferences(path: Path, tokenizer: PreTrainedTokenizerBase, *, tokens: int, seed: int = 0) -> Splits:
    """Split a table of ``prompt``, ``chosen`` and ``rejected`` into three parts of pairs, by rows.

    *Shapes:* each batch is one pair: ``chosen_ids``, ``chosen_labels``, ``rejected_ids`` and ``rejected_labels``, int64 (1, tokens); labels are -100
    over the prompt.

    *Raises:* ``DataError`` for a row that lacks a text, has one answer twice, or is longer than ``tokens``, with its line.
    """
    rows = [_row(where, record, tokenizer, tokens) for where, record in records(path, read_text(path))]
    if len(rows) < 3:
        raise DataError(f"data: {path} must have at least 3 pairs, for training, choosing and reporting, has {len(rows)}. Add rows.")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return parted([list(part) for part in divided([rows[place] for place in order], WINDOW_SHARES)], str(path), [])


def _row(where: str, record: Any, tokenizer: Any, tokens: int) -> Batch:
    require_texts(where, record, _COLUMNS)
    found: dict[str, torch.Tensor] = {}
    for side in _COLUMNS[1:]:
        ids, labels = tokenized(record["prompt"], record[side], tokenizer)
        if len(ids) > tokens:
            raise DataError(f"data: {where} must have at most {tokens} tokens, has {len(ids)}. Shorten it, or raise --tokens.")
        if all(label < 0 for label in labels[1:]):
            raise DataError(f"data: {where} must have answers of a token at least, has none. Mend or remove the line.")
        found |= {f"{side}_ids": torch.tensor([ids]), f"{side}_labels": torch.tensor([labels])}
    if torch.equal(found["chosen_ids"], found["rejected_ids"]):
        raise DataError(f"data: {where} must have two answers, of which one is preferred, has one twice. Mend or remove the line.")
    return found
