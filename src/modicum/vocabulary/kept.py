"""Whether one tokenizer is another with fewer tokens, as ``trim`` makes it, and which tokens stayed."""

from __future__ import annotations

import json
from typing import Any

from modicum.vocabulary import _tokenizer

# What says how a text is divided into tokens.
_SPELLING = ("model", "normalizer", "pre_tokenizer")


def kept_tokens(original: Any, trimmed: Any) -> list[int] | None:
    """The original's ids of all tokens of the trimmed tokenizer, in the order of their new ids; None where it is no trim of the original.

    It is one where renumbering the original's rules over these tokens gives the rules that it has.
    """
    ours, theirs = original.get_vocab(), trimmed.get_vocab()
    kept = sorted(ours[token] for token in theirs if token in ours)
    table = {before: after for after, before in enumerate(kept)}
    if len(kept) != len(theirs) or len(kept) == len(ours) or any(table[ours[token]] != index for token, index in theirs.items()):
        return None
    before, after = spelling(original), spelling(trimmed)
    if (
        before is None
        or after is None
        or _tokenizer.kind(before) not in _tokenizer.KINDS
        or not _tokenizer.required(before) <= table.keys()
    ):
        return None
    expected = _tokenizer.renumbered_tokenizer(before, table)
    return kept if all(expected.get(part) == after.get(part) for part in _SPELLING) else None


def same_spelling(one: Any, other: Any) -> bool:
    """Whether two tokenizers divide text alike, as far as it can be told without one."""
    bodies = [spelling(tokenizer) for tokenizer in (one, other)]
    if bodies[0] is None or bodies[1] is None:
        return type(one) is type(other)
    return all(bodies[0].get(part) == bodies[1].get(part) for part in _SPELLING)


def spelling(tokenizer: Any) -> dict[str, Any] | None:
    """Rules of a tokenizer of the tokenizers library; None of any other."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else json.loads(backend.to_str())
