"""Facts as batches of tokens: what is given, what is to follow, and where the subject ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from modicum.core.errors import DataError, quoted
from modicum.edit.facts import Fact

IGNORED = -100


@dataclass(frozen=True)
class Rows:
    """Padded sequences: ``input_ids``, ``attention_mask`` and ``labels``, int64 (rows, longest), labels -100 but at the target's tokens.

    ``ends`` (rows,) is the place of the subject's last token, of a fact without a subject the prompt's last.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    ends: torch.Tensor

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def answering(self) -> torch.Tensor:
        """Places (rows, longest) bool whose next token is one of the target's."""
        found = torch.zeros_like(self.labels, dtype=torch.bool)
        found[:, :-1] = self.labels[:, 1:] != IGNORED
        return found

    @property
    def ending(self) -> torch.Tensor:
        """Places (rows, longest) bool of the subject's last token."""
        return torch.arange(self.input_ids.shape[1])[None] == self.ends[:, None]

    def by_length(self) -> Rows:
        """The same rows, the shortest first, so that those that run at once need little padding."""
        order = self.attention_mask.sum(1).argsort(stable=True)
        return Rows(*(one[order] for one in (self.input_ids, self.attention_mask, self.labels, self.ends)))

    def between(self, start: int, stop: int) -> Rows:
        """Some rows, without padding that all of them have."""
        width = int(self.attention_mask[start:stop].sum(1).max())
        ids, seen, labels = (one[start:stop, :width] for one in (self.input_ids, self.attention_mask, self.labels))
        return Rows(ids, seen, labels, self.ends[start:stop])


def encoded(tokenizer: Any, facts: Sequence[Fact], longest: int, *, before: Sequence[str] = ()) -> Rows:
    """Facts as rows; ``before`` puts a text before each. The target is tokenized by itself, as it will be decoded.

    Raises ``DataError`` for a target of more than ``longest`` tokens, or of none.
    """
    found = []
    for place, fact in enumerate(facts):
        context = before[place] if before else ""
        given, answer = _ids(tokenizer, context + fact.prompt), tokenizer(fact.target, add_special_tokens=False)["input_ids"]
        if not 0 < len(answer) <= longest:
            raise DataError(
                f"facts: {fact.where} must have a target of 1 to {longest} tokens, has {len(answer)} in {quoted(repr(fact.target), 60)}. "
                "Shorten it, or raise --longest."
            )
        found.append((given, answer, _end(tokenizer, context, fact, len(given))))
    longest_row = max(len(given) + len(answer) for given, answer, _ in found)
    ids, seen = torch.zeros(len(found), longest_row, dtype=torch.int64), torch.zeros(len(found), longest_row, dtype=torch.int64)
    labels = torch.full((len(found), longest_row), IGNORED)
    for row, (given, answer, _) in enumerate(found):
        size = len(given) + len(answer)
        ids[row, :size] = torch.tensor([*given, *answer])
        seen[row, :size] = 1
        labels[row, len(given) : size] = torch.tensor(answer)
    return Rows(ids, seen, labels, torch.tensor([end for *_, end in found]))


def prompts(tokenizer: Any, texts: Sequence[str]) -> Rows:
    """Prompts alone, whose last token is the one that something follows."""
    found = [_ids(tokenizer, text) for text in texts]
    width = max(map(len, found))
    ids, seen = torch.zeros(len(found), width, dtype=torch.int64), torch.zeros(len(found), width, dtype=torch.int64)
    for row, given in enumerate(found):
        ids[row, : len(given)], seen[row, : len(given)] = torch.tensor(given), 1
    return Rows(ids, seen, torch.full((len(found), width), IGNORED), seen.sum(1) - 1)


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids = list(tokenizer(text)["input_ids"])
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def _end(tokenizer: Any, context: str, fact: Fact, size: int) -> int:
    """The place of the token in which the subject ends."""
    if not fact.subject:
        return size - 1
    stop = len(context) + fact.prompt.rindex(fact.subject) + len(fact.subject)
    return min(size, len(_ids(tokenizer, (context + fact.prompt)[:stop]))) - 1
