"""Texts with the class of each: what a classifier learns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from modicum.core.errors import DataError, near, quoted
from modicum.data.files import kind, read_text
from modicum.data.splits import WINDOW_SHARES, Batch, Splits, divided, parted
from modicum.data.tables import records, require_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Columns that hold a text, and a second one that it is judged with.
TEXTS, SECONDS = ("text", "sentence", "premise", "question"), ("text_pair", "hypothesis", "passage")
LABEL = "label"


def holds_classes(path: Path) -> bool:
    """Whether a file is a table of texts with labels. Raises ``DataError`` for one that cannot be read."""
    if not path.is_file() or kind(path) not in (".jsonl", ".csv", ".tsv"):
        return False
    first = next(records(path, read_text(path)), None)
    return first is not None and LABEL in first[1] and any(name in first[1] for name in TEXTS)


def from_classes(path: Path, tokenizer: PreTrainedTokenizerBase, classes: Mapping[int, str], *, tokens: int, seed: int = 0) -> Splits:
    """Split a table of texts with a ``label`` into three parts of rows, each a batch of its own.

    A label is the number of a class or its name among ``classes``; a second text (``text_pair``, ``hypothesis``, ``passage``) goes with the first.

    *Shapes:* ``input_ids``, ``attention_mask`` and what else the tokenizer gives, int64 (1, tokens), and ``labels``, int64 (1,).

    *Raises:* ``DataError`` for a row without a text, one that is longer than ``tokens``, or a label of no class, with its line.
    """
    rows = [_row(where, record, tokenizer, classes, tokens) for where, record in records(path, read_text(path))]
    if len(rows) < 3:
        raise DataError(f"data: {path} must have at least 3 rows, for training, choosing and reporting, has {len(rows)}. Add rows.")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return parted([list(part) for part in divided([rows[place] for place in order], WINDOW_SHARES)], str(path), [])


def _row(where: str, record: Mapping[str, Any], tokenizer: Any, classes: Mapping[int, str], tokens: int) -> Batch:
    first, second = (next((name for name in names if record.get(name) is not None), names[0]) for names in (TEXTS, SECONDS))
    require_texts(where, record, [first, *([second] if record.get(second) is not None else [])])
    if not record[first].strip():
        raise DataError(f"data: {where} must have a text under {first}, has none there. Mend or remove the line.")
    found = {name: torch.tensor([ids]) for name, ids in tokenizer(record[first], record.get(second), verbose=False).items()}
    if (count := found["input_ids"].shape[1]) > tokens:
        raise DataError(f"data: {where} must have at most {tokens} tokens, has {count}. Shorten it, or raise --tokens.")
    return found | {"labels": torch.tensor([_class(where, record.get(LABEL), classes)])}


def _class(where: str, label: Any, classes: Mapping[int, str]) -> int:
    """The number of a class. Raises ``DataError`` for what is none."""
    named = {name: number for number, name in classes.items()}
    if isinstance(label, str) and label in named:
        return named[label]
    number = int(label) if isinstance(label, str) and label.isdecimal() else label
    if isinstance(number, int) and not isinstance(number, bool) and number in classes:
        return number
    names = [str(name) for name in named]
    raise DataError(
        f"data: {where} must have as its label a class of the model, 0 to {len(classes) - 1} or its name, is {quoted(repr(label))}. "
        f"{near(str(label), names)}"
    )
