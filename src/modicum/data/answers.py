"""Prompts and their answers: sequences of which the answer alone is learnt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from modicum.core.errors import DataError, quoted
from modicum.data.files import kind, read_text
from modicum.data.splits import WINDOW_SHARES, Batch, Splits, divided, parted
from modicum.data.tables import records, require_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Pairs of columns that hold a prompt and its answer.
PAIRS = (("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("question", "answer"), ("prompt", "answer"))
IGNORED = -100


def holds_answers(path: Path) -> bool:
    """Whether a file is a table of prompts and answers, or of conversations. Raises ``DataError`` for one that cannot be read."""
    if not path.is_file() or kind(path) not in (".jsonl", ".csv", ".tsv"):
        return False
    first = next(records(path, read_text(path)), None)
    return first is not None and (_pair(first[1]) is not None or "messages" in first[1])


def from_answers(path: Path, tokenizer: PreTrainedTokenizerBase, *, tokens: int, batch: int, seed: int = 0) -> Splits:
    """Split a table of prompts and answers into three parts of padded batches, by rows.

    *Shapes:* each batch is ``input_ids``, ``attention_mask`` and ``labels``, int64 (rows, longest); labels are -100 where nothing is
    learnt, over the prompt and the padding. An answer ends with the tokenizer's end of sequence, a conversation as its template ends it,
    and each of the assistant's turns is an answer.

    *Raises:* ``DataError`` for a row that has no answer, or is longer than ``tokens``, with its line.
    """
    rows = [_row(where, record, tokenizer, tokens) for where, record in records(path, read_text(path))]
    if len(rows) < 3:
        raise DataError(f"data: {path} must have at least 3 rows, for training, choosing and reporting, has {len(rows)}. Add rows.")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    parts = divided([rows[place] for place in order], WINDOW_SHARES)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    return parted([list(_batches(part, batch, int(pad))) for part in parts], str(path), [])


def _pair(record: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in PAIRS if set(pair) <= record.keys()), None)


def _row(where: str, record: Mapping[str, Any], tokenizer: Any, tokens: int) -> tuple[list[int], list[int]]:
    if "messages" in record:
        ids, labels = _conversation(where, record["messages"], tokenizer)
    else:
        ids, labels = _answer(where, record, tokenizer)
    if len(ids) > tokens:
        raise DataError(f"data: {where} must have at most {tokens} tokens, has {len(ids)}. Shorten it, or raise --tokens.")
    if all(label == IGNORED for label in labels[1:]):
        raise DataError(f"data: {where} must have an answer of a token at least, has none. Mend or remove the line.")
    return ids, labels


def _answer(where: str, record: Mapping[str, Any], tokenizer: Any) -> tuple[list[int], list[int]]:
    pair = _pair(record) or PAIRS[0]
    require_texts(where, record, pair)
    return tokenized(record[pair[0]], record[pair[1]], tokenizer)


def tokenized(prompt: str, answer: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids of a prompt and its answer, which ends the sequence, and their labels: -100 over the prompt."""
    begun = tokenizer(prompt)["input_ids"]
    if begun and begun[-1] == tokenizer.eos_token_id:
        begun = begun[:-1]  # what a tokenizer puts behind every text
    rest = tokenizer(answer, add_special_tokens=False)["input_ids"]
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [*begun, *rest, *ends], [*[IGNORED] * len(begun), *rest, *ends]


def _conversation(where: str, messages: Any, tokenizer: Any) -> tuple[list[int], list[int]]:
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"data: {where} holds messages, which need a tokenizer with a chat template, this has none. Use prompt and completion."
        )
    if not isinstance(messages, list) or not all(isinstance(turn, dict) and isinstance(turn.get("content"), str) for turn in messages):
        raise DataError(f"data: {where} messages must be objects with role and content. Mend the line.")
    try:
        render = lambda turns, **words: tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False, **words)
        ids = list(render(messages))
        labels = [IGNORED] * len(ids)
        for place, turn in enumerate(messages):
            if turn.get("role") == "assistant":
                before, after = len(render(messages[:place], add_generation_prompt=True)), len(render(messages[: place + 1]))
                labels[before:after] = ids[before:after]
    except Exception as error:  # whatever a template raises
        raise DataError(f"data: {where} must suit the chat template, which says: {quoted(error)}. Mend or remove the line.") from None
    return ids, labels


def _batches(rows: Sequence[tuple[list[int], list[int]]], batch: int, pad: int) -> Iterator[Batch]:
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        yield {
            "input_ids": _filled([ids for ids, _ in some], pad),
            "attention_mask": _filled([[1] * len(ids) for ids, _ in some], 0),
            "labels": _filled([labels for _, labels in some], IGNORED),
        }


def _filled(values: Sequence[Sequence[int]], empty: int) -> torch.Tensor:
    longest = max(map(len, values))
    return torch.tensor([[*each, *[empty] * (longest - len(each))] for each in values])
