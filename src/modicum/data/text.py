"""From files to documents, from documents to one stream of tokens, from the stream to windows of equal length."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import zlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from modicum.core.errors import DataError, SettingError, near

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "<|endoftext|>"
SHIPPED_PARTS = ("calibration", "validation", "test")
PROSE_SUFFIXES = frozenset({".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".html", ".htm", ".xml", ".csv", ".tsv"})
CODE_SUFFIXES = frozenset(
    {".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".kt", ".scala", ".swift", ".js", ".ts"}
    | {".rb", ".php", ".pl", ".lua", ".r", ".jl", ".sh", ".sql", ".css", ".toml", ".yaml", ".yml", ".ini", ".cfg"}
)
FOLDER_SUFFIXES = PROSE_SUFFIXES | CODE_SUFFIXES | {".jsonl"}
DECOMPRESS = {".xz": lzma.decompress, ".gz": gzip.decompress}


def read_documents(path: str | os.PathLike[str], *, tokenizer: PreTrainedTokenizerBase | None = None) -> list[str]:
    """Read the documents of a UTF-8 text file, a JSON-lines file, or a folder of them.

    A text file is one document, or several where the literal ``<|endoftext|>`` divides it. A ``.jsonl`` file holds one object a
    line with ``text`` (a string) or else ``messages`` (a list of ``role`` and ``content`` strings), which the tokenizer's chat
    template renders. Each may be compressed, with ``.xz`` or ``.gz`` added to its name. A file named outright may have any other
    suffix and is plain text; of a folder, files with a suffix in ``FOLDER_SUFFIXES`` are read, at every depth, in the order of
    their names. There, hidden files and folders are left out, and links are not followed: they may lead out of the folder, or
    bring one text twice. Documents of white space alone are dropped.

    Raises:
        DataError: nothing there to read; a file that cannot be opened, decompressed or decoded (names the byte); a line that is
            not such an object (names the line); messages without a chat template that renders them.

    """
    path = Path(path)
    documents = [document for file in _files(path) for document in _read_file(file, tokenizer)]
    if not documents:
        looked = "; of a folder, links, hidden files and suffixes other than those of text are not read" if path.is_dir() else ""
        raise DataError(f"data: {path} must hold text, none was found{looked}. Name a file or folder with text in it.")
    return documents


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


def _files(path: Path) -> list[Path]:
    """Files to read, in order: the path itself, or what a folder holds of text."""
    try:
        if not path.is_dir():
            return [path]
        found: list[Path] = []
        for here, folders, names in os.walk(path, onerror=_refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [Path(here, name) for name in names if not name.startswith(".")]
        readable = [file for file in found if _kind(file) in FOLDER_SUFFIXES and file.is_file() and not file.is_symlink()]
        return sorted(readable, key=Path.as_posix)
    except OSError as error:
        raise DataError(f"data: {path} must be readable, it gave: {error}. Check the path and its permissions.") from error


def _refuse(error: OSError) -> None:
    """Stop the walk at a folder that cannot be listed, which it would pass over in silence."""
    raise error


def _kind(file: Path) -> str:
    """Suffix in lower case, that of the compression left aside."""
    inner = file.with_suffix("") if file.suffix.lower() in DECOMPRESS else file
    return inner.suffix.lower()


def _read_file(file: Path, tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """Documents of one file, those of white space alone dropped."""
    text = _decode(file)
    if _kind(file) != ".jsonl":
        return _divide(text)
    # Only "\n" ends a line: splitlines() would also cut at separators that JSON allows inside a string.
    lines = [(f"{file}, line {number},", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [document for where, line in lines if (document := _document(where, line, tokenizer)).strip()]


def _decode(file: Path) -> str:
    """Text of a file, decompressed, without a byte-order mark."""
    try:
        if not file.is_file():
            raise DataError(f"data: {file} must be a file or folder, none is there. Check the path.")
        data = file.read_bytes()
        data = DECOMPRESS.get(file.suffix.lower(), bytes)(data)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"data: {file} must be readable, it gave: {error}. Check its permissions and that it is whole.") from error
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(
            f"data: {file} must be UTF-8, byte {error.start} of its content is 0x{data[error.start]:02x}. "
            "Convert the file to UTF-8, or leave it out."
        ) from error


def _divide(text: str) -> list[str]:
    """Documents of a plain text."""
    return [document for document in text.split(SEPARATOR) if document.strip()]


def _document(where: str, line: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Document of one JSON line."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", str(error))
        raise DataError(f"data: {where} must be one JSON object, the parser says: {reason}. Mend or remove the line.") from error
    text = record.get("text") if isinstance(record, dict) else None
    if isinstance(record, dict) and "text" not in record and "messages" in record:
        text = _render(where, record["messages"], tokenizer)
    if not isinstance(text, str):
        raise DataError(f"data: {where} must be an object with a string `text` or a list `messages`. Mend or remove the line.")
    if not _is_unicode(text):
        raise DataError(f"data: {where} must be valid Unicode, it holds half of a surrogate pair. Mend or remove the line.")
    return text


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
        raise DataError(f"data: {where} must suit the tokenizer's chat template, which says: {error}. Mend or remove the line.") from error


def _is_conversation(messages: Any) -> bool:
    """Whether this is a list, not empty, of objects with strings ``role`` and ``content``."""
    if not isinstance(messages, list) or not messages:
        return False
    return all(isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str) for turn in messages)
