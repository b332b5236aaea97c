"""How much text there is, without tokenizing more of it than says so: what a forecast needs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from modicum.core.errors import DataError
from modicum.core.sources import is_own, sources_of
from modicum.data.text import SHIPPED_PARTS, Documents, encode, read_all, shipped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Characters that are read of a path, and those that are tokenized to tell the tokens of all.
_READ, _TOKENIZED = 4_000_000, 200_000


def extent(path: str | os.PathLike[str] | None, tokenizer: PreTrainedTokenizerBase, tokens: int, text_column: str | None) -> dict[str, Any]:
    """What there is at ``path`` (None: the shipped texts), as ``Splits.taken`` tells it, by a sample of it; ``at_least`` where there is more.

    Raises ``DataError`` where three windows of ``tokens`` cannot come out of it, and what reading raises.
    """
    sources = [] if path is None else [source for source, _ in sources_of(path) if not is_own(source)]
    if not sources:
        documents = [document for part in SHIPPED_PARTS for document in shipped(part)]
        taken: dict[str, Any] = {"kind": "text", "documents": len(documents), "at_least": False}
    else:
        found = Documents()
        for source in sources:
            own = read_all(source, tokenizer=tokenizer, text_column=text_column, most=_READ)
            found = Documents(found.texts + own.texts, found.files + own.files, found.columns | own.columns, 0, found.cut or own.cut)
        documents = found.texts
        taken = {"kind": "text", "files": found.files, "documents": len(documents), "at_least": found.cut}
        taken |= {"columns": sorted(found.columns)} if found.columns else {}
    taken["tokens"] = _counted(documents, tokenizer)
    # A sample may be a third off; what is nearer than that the run itself finds out, before any work.
    if not taken["at_least"] and taken["tokens"] * 1.5 < 3 * tokens:
        where = "the text shipped with modicum" if path is None else os.fspath(path)
        raise DataError(
            f"data: {where} must give each of three parts a window of {tokens} tokens, "
            f"{3 * tokens} in all; about {taken['tokens']} were found. Give more text or ask for fewer tokens a window."
        )
    return taken


def _counted(documents: list[str], tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of documents, told by those of the first ones where they are many."""
    some, left = [], _TOKENIZED
    for document in documents:
        some.append(document[:left])
        left -= len(some[-1])
        if left <= 0:
            break
    return round(len(encode(some, tokenizer)) * sum(map(len, documents)) / max(1, sum(map(len, some))))
