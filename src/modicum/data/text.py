"""From files to documents, from documents to one stream of tokens, from the stream to windows of equal length."""

from __future__ import annotations

import json
import lzma
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from modicum.core.errors import DataError, SettingError, near, quoted
from modicum.data import files, tables

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "<|endoftext|>"
SHIPPED_PARTS = ("calibration", "validation", "test")
PROSE_SUFFIXES = frozenset({".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".html", ".htm", ".xml"})
CODE_SUFFIXES = frozenset(
    {".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".kt", ".scala", ".swift", ".js", ".ts"}
    | {".rb", ".php", ".pl", ".lua", ".r", ".jl", ".sh", ".sql", ".css", ".toml", ".yaml", ".yml", ".ini", ".cfg"}
)
# Of a folder. JSON that is not one object a line is more often settings than text: it is read where there is nothing else.
FOLDER_SUFFIXES = PROSE_SUFFIXES | CODE_SUFFIXES | (tables.SUFFIXES - {".json"})


@dataclass
class Documents:
    """Texts as they were read: of how many files, out of which columns, how many were blank and left out, and whether there is more to read."""

    texts: list[str] = field(default_factory=list)
    files: int = 0
    columns: set[str] = field(default_factory=set)
    blank: int = 0
    cut: bool = False


def read_documents(
    path: str | os.PathLike[str], *, tokenizer: PreTrainedTokenizerBase | None = None, text_column: str | None = None
) -> list[str]:
    """Read the documents of a text file, a table (CSV, TSV, JSON, JSON lines, Parquet), or a folder of them.

    A text file is one document, or several where the literal ``<|endoftext|>`` divides it. A table has one document a row, in its column
    ``text_column``; without it in the one called ``text``, else the one of another usual name (``content``, ``document``, ...), else the only
    one that holds text. A JSON line may hold ``messages`` instead (a list of ``role`` and ``content`` strings), which the tokenizer's chat
    template renders. Each file but Parquet may be compressed, with ``.xz``, ``.gz`` or ``.bz2`` added to its name. A file named outright may have
    any other suffix and is plain text in UTF-8; of a folder, files with a suffix in ``FOLDER_SUFFIXES`` are read, at every depth, in the order of
    their names, or those that end in ``.json`` where there are no others. There, hidden files and folders are left out, and links are not
    followed: they may lead out of the folder, or bring one text twice. Documents of white space alone are dropped. Of more text than a run can use
    (100 million characters) the first part is read.

    Raises:
        DataError: nothing there to read; a file that cannot be opened, decompressed or decoded (names the byte), or is no text; a row that holds no
            text (names the line); a column that cannot be told (names all); messages without a chat template that renders them.

    """
    return read_all(path, tokenizer=tokenizer, text_column=text_column).texts


def read_all(
    path: str | os.PathLike[str],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text_column: str | None = None,
    most: int = files.MOST,
) -> Documents:
    """Read as :func:`read_documents` does up to ``most`` characters, with what there is to tell of it."""
    path, found = Path(path), Documents()
    named = files.find(path, FOLDER_SUFFIXES, {".json"})
    for place, file in enumerate(named):
        most -= _add(found, file, tokenizer, text_column, most)
        if found.cut or (most <= 0 and place + 1 < len(named)):
            found.cut = True
            break
    if text_column is not None and not found.columns:
        raise DataError(f"data: {path} must hold a table for --text-column to name its column, holds none. Leave --text-column out.")
    if not found.texts:
        looked = "; of a folder, links, hidden files and suffixes other than those of text are not read" if path.is_dir() else ""
        raise DataError(f"data: {path} must hold text, none was found{looked}. Name a file or folder with text in it.")
    return found


def shipped(part: str) -> list[str]:
    """Read the documents of one of the three texts inside the package: ``calibration``, ``validation`` or ``test``.

    They are modules and help topics of Python's standard library; no module is in two parts.

    Raises:
        SettingError: no such part.

    """
    if part not in SHIPPED_PARTS:
        raise SettingError(
            f"texts of the package: the part must be one that ships with modicum, {part!r} came. {near(part, SHIPPED_PARTS)}"
        )
    packed = resources.files("modicum") / "demo" / f"{part}.txt.xz"
    return _divide(lzma.decompress(packed.read_bytes()).decode())


def encode(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Tokenize documents into one stream, each closed by the end-of-text token where the tokenizer has one.

    No other special token is added. A document that ends with the end token already, as some chat templates write it, gets no second.

    Shapes: int64 ``[tokens]``, on the CPU.
    """
    if not documents:
        return torch.empty(0, dtype=torch.int64)
    # verbose=False: a document longer than the model's context is meant to be, and is cut into windows later.
    rows = tokenizer(list(documents), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    closed = (row if end is None or row[-1:] == [end] else [*row, end] for row in rows)
    return torch.cat([torch.tensor(row, dtype=torch.int64) for row in closed])


def windows(stream: Tensor, tokens: int, samples: int, generator: torch.Generator) -> Tensor:
    """Draw windows of a stream that do not overlap, without replacement.

    The stream is cut every ``tokens`` tokens, a shorter rest left out, and the windows are taken in an order drawn by ``generator``:
    the first k are the same whatever ``samples`` is. Where fewer exist than asked for, all come; the caller compares and reports.

    Shapes: ``stream`` ``[n]`` → ``[min(samples, n // tokens), tokens]``. ``generator`` lives on the CPU.

    Raises:
        SettingError: ``tokens`` or ``samples`` below 1.
        DataError: the stream is shorter than one window.

    """
    if tokens < 1 or samples < 1:
        raise SettingError(f"data: tokens and samples must be at least 1, {tokens} and {samples} came. Raise them.")
    count = len(stream) // tokens
    if count == 0:
        raise DataError(
            f"data: the text is too short, one window needs {tokens} tokens and {len(stream)} were found. "
            "Give a longer text or ask for fewer tokens a window."
        )
    order = torch.randperm(count, generator=generator)[:samples]
    return stream[: count * tokens].view(count, tokens)[order.to(stream.device)]


def _add(found: Documents, file: Path, tokenizer: PreTrainedTokenizerBase | None, text_column: str | None, most: int) -> int:
    """Read a file into what was found; the number of characters read."""
    read = _read_file(file, tokenizer, text_column, most, found)
    kept = [document for document in read if document.strip()]
    found.files += 1
    found.blank += len(read) - len(kept)
    found.texts += kept
    return sum(map(len, kept))


def _read_file(file: Path, tokenizer: PreTrainedTokenizerBase | None, text_column: str | None, most: int, found: Documents) -> list[str]:
    """Documents of one file."""
    suffix = files.kind(file)
    if suffix == ".parquet" or files.begins(file).startswith(files.PARQUET):
        cells, column, found.cut = tables.from_parquet(file, most, text_column)
    else:
        text = files.read_text(file, most)
        found.cut = text.cut
        if suffix not in tables.SUFFIXES:
            return text.value.split(SEPARATOR) if SEPARATOR in text.value else [text.value]
        cells, column = _table(file, text, suffix, text_column)
    found.columns |= {column} if column else set()
    return [_document(cell, column, tokenizer) for cell in cells]


def _table(file: Path, text: files.Text, suffix: str, asked: str | None) -> tuple[list[tables.Cell], str]:
    if suffix == ".json":
        return tables.from_json(file, text, asked)
    return tables.from_json_lines(file, text, asked) if suffix in (".jsonl", ".ndjson") else tables.from_csv(file, text, suffix, asked)


def _divide(text: str) -> list[str]:
    """Documents of a plain text."""
    return [document for document in text.split(SEPARATOR) if document.strip()]


def _document(cell: tables.Cell, column: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Document of one row."""
    text = _render(cell.where, cell.value, tokenizer) if _is_chat(column, cell.value) else cell.value
    if not isinstance(text, str):
        found = quoted(json.dumps(text, default=str), 60)
        raise DataError(f"data: {cell.where} must have a text under {column}, has {found} there. Mend or remove the line.")
    if not _is_unicode(text):
        raise DataError(f"data: {cell.where} must be valid Unicode, it holds half of a surrogate pair. Mend or remove the line.")
    return text


def _is_chat(column: str, value: Any) -> bool:
    return (column == "messages" and not isinstance(value, str)) or _is_conversation(value)


def _is_unicode(text: str) -> bool:
    r"""Whether a text can be written as UTF-8; JSON's ``\ud800`` escapes can make one that cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _render(where: str, messages: Any, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Text of a conversation, by the tokenizer's chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"data: {where} holds `messages`, which need a tokenizer with a chat template, none came. "
            "Use the tokenizer of a chat model, or lines with `text`."
        )
    if not _is_conversation(messages):
        raise DataError(f"data: {where} `messages` must be a list of objects with strings `role` and `content`. Mend the line.")
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False)  # type: ignore[union-attr,return-value]
    except (TemplateError, ValueError, TypeError) as error:
        raise DataError(
            f"data: {where} must suit the tokenizer's chat template, which says: {quoted(error)}. Mend or remove the line."
        ) from error


def _is_conversation(messages: Any) -> bool:
    """Whether this is a list, not empty, of objects with strings ``role`` and ``content``."""
    if not isinstance(messages, list) or not messages:
        return False
    return all(isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str) for turn in messages)
