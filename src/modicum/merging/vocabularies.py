"""Models whose vocabularies differ: rows of embeddings and heads told apart by their tokens' texts, and a tokenizer that has them all."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from modicum.core.errors import ModelError, SettingError, quoted
from modicum.core.files import write_json
from modicum.merging.sources import Changed, Source, Stored
from modicum.models.open import open_model

_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by text of a checkpoint, in the numbers of its rows, and the folder whose tokenizer it is."""

    tokens: Mapping[str, int]
    folder: Path

    @classmethod
    def of(cls, folder: Path) -> Vocabulary:
        """The vocabulary of a checkpoint. Raises ``ModelError`` for one without ``tokenizer.json``."""
        body = _body(folder)
        vocabulary = body.get("model", {}).get("vocab", {})
        ordinary = vocabulary.items() if isinstance(vocabulary, dict) else ((each[0], place) for place, each in enumerate(vocabulary))
        added = {each["content"]: each["id"] for each in body.get("added_tokens") or ()}
        return cls({**dict(ordinary), **added}, folder)


@dataclass
class Tabled(Source):
    """A model whose rows stand in another order and number: each token's is its own, or where it has none what ``fallback`` has there."""

    of: Source
    tables: frozenset[str]
    rows: int
    own: Mapping[int, int]  # the row there by the row here
    fallback: Sequence[tuple[Source, Mapping[int, int]]]
    label: str
    _made: dict[str, torch.Tensor] = field(default_factory=dict)

    @cached_property
    @override
    def digest(self) -> str:  # type: ignore[override]
        words = f"{self.of.digest} {self.rows} {sorted(self.own.items())} {[source.digest for source, _ in self.fallback]}"
        return hashlib.sha256(words.encode()).hexdigest()

    @override
    def names(self) -> list[str]:
        return self.of.names()

    @override
    def entry(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        dtype, shape = self.of.entry(name)
        return dtype, (self.rows, *shape[1:]) if name in self.tables else shape

    @override
    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        if name not in self.tables:
            return self.of.read(name, start, stop)
        if name not in self._made:
            self._made = {name: self._table(name)}
        return self._made[name].reshape(-1)[start:stop]

    def _table(self, name: str) -> torch.Tensor:
        dtype, shape = self.entry(name)
        found, counts = torch.zeros(shape, dtype=torch.float32), torch.zeros(self.rows)
        for source, rows in self.fallback:
            value = _whole(source, name)
            here, there = torch.tensor(list(rows), dtype=torch.long), torch.tensor(list(rows.values()), dtype=torch.long)
            found[here] += value[there].float()
            counts[here] += 1
        found /= counts.clamp(min=1).reshape(-1, *[1] * (found.ndim - 1))
        here, there = torch.tensor(list(self.own), dtype=torch.long), torch.tensor(list(self.own.values()), dtype=torch.long)
        made = found.to(dtype)
        made[here] = _whole(self.of, name)[there]
        return made


@dataclass(frozen=True)
class Joined:
    """Base and models of one vocabulary, and what is written of it: a folder's tokenizer, or another ``tokenizer.json`` and more rows."""

    base: Source
    models: tuple[Source, ...]
    folder: Path
    rows: int
    body: dict[str, Any] | None

    def write(self, out: Path) -> None:
        """Put the tokenizer and the number of rows beside the tensors."""
        body = json.loads((out / "config.json").read_text(encoding="utf-8")) if (out / "config.json").is_file() else {}
        if "vocab_size" in body:
            theirs = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
            ids = {key: theirs[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in theirs and key in body}
            write_json(out / "config.json", body | ids | {"vocab_size": self.rows})
        for file in (*self.folder.glob("tokenizer*"), *self.folder.glob("special_tokens_map.json"), *self.folder.glob("chat_template*")):
            (out / file.name).write_bytes(file.read_bytes())
        if self.body is not None:
            (out / _FILE).write_text(json.dumps(self.body, ensure_ascii=False), encoding="utf-8")
            for other in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer.model"):
                (out / other).unlink(missing_ok=True)  # of the old vocabulary


def joined(kind: str, base: Source, models: Sequence[Source]) -> Joined | None:
    """Base and models in one vocabulary: the ``base``'s, the ``union`` of all, or that of the model whose name it is; None where all are the same.

    A token is told by its text. Where the base lacks one its row is the mean of those models' that have it; where a model lacks one, its row is the
    base's, so that it changes nothing there. Rows beyond the tokens (padding) are kept by number. Raises ``ModelError`` and ``SettingError``.
    """
    if not isinstance(base, Stored):
        raise SettingError("tokenizer: layers of slices and experts have the vocabulary of the base. Leave it out.")
    stored = [_stored(each) for each in models]
    known = {each.directory: Vocabulary.of(each.directory) for each in (base, *stored)}
    tables = _tables(base)
    mine = known[base.directory]
    wanted, folder, body = dict(mine.tokens), base.directory, None
    if kind == "union":
        body = _united(base.directory, wanted, [known[each.directory] for each in stored])
    elif kind != "base":
        chosen = next((each for each in stored if kind in (each.label, str(each.directory))), None)
        if chosen is None:
            raise SettingError(f"tokenizer: must be base, union or one of the models, is {quoted(kind)}.")
        wanted, folder = dict(known[chosen.directory].tokens), chosen.directory
    if (
        all(each.tokens == wanted for each in known.values())
        and len({each.entry(name)[1] for name in tables for each in (base, *stored)}) <= 2
    ):
        return None
    given = folder if kind != "union" else base.directory
    sizes = {each.directory: max(each.entry(name)[1][0] for name in tables) for each in (base, *stored)}
    rows = max(sizes[given], max(wanted.values(), default=-1) + 1)
    own = {
        each.directory: _matching(wanted, known[each.directory], sizes[each.directory], rows, each.directory == given)
        for each in (base, *stored)
    }
    lacking = set(range(rows)) - set(own[base.directory])
    beside = [(each, {row: there for row, there in own[each.directory].items() if row in lacking}) for each in stored]
    changed = Tabled(base, tables, rows, own[base.directory], beside, base.label)
    everything = {row: row for row in range(rows)}
    found = []
    for each, where in zip(models, stored):
        rest = {row: row for row in everything if row not in own[where.directory]}
        found.append(Tabled(each, tables, rows, own[where.directory], [(changed, rest)], each.label))
    return Joined(changed, tuple(found), folder, rows, body)


def require_one(base: Source, models: Sequence[Source]) -> None:
    """Raise ``ModelError`` for a model whose tokens stand for other rows than the base's, as far as both have a tokenizer that says so."""
    if not isinstance(base, Stored) or not (base.directory / _FILE).is_file():
        return
    mine = Vocabulary.of(base.directory).tokens
    for each in models:
        if isinstance(each, Stored) and (each.directory / _FILE).is_file():
            theirs = Vocabulary.of(each.directory).tokens
            apart = next((text for text in {*mine, *theirs} if mine.get(text) != theirs.get(text)), None)
            if apart is not None:
                raise ModelError(
                    f"{each.label}: its vocabulary must be the base's, and has another row for the token {quoted(repr(apart))}. "
                    "Pass --tokenizer union or base."
                )


def _matching(wanted: Mapping[str, int], known: Vocabulary, size: int, rows: int, padded: bool) -> dict[int, int]:
    found = {row: known.tokens[text] for text, row in wanted.items() if known.tokens.get(text, size) < size}
    taken = set(wanted.values())
    return found | ({row: row for row in range(min(size, rows)) if row not in taken} if padded else {})


def _stored(source: Source) -> Stored:
    if isinstance(source, Changed):
        return source.base
    if not isinstance(source, Stored):
        raise SettingError(f"tokenizer: {source.label} is no checkpoint of its own, and has the vocabulary of the base. Leave it out.")
    return source


def _tables(base: Stored) -> frozenset[str]:
    """Tensors with a row for each token: of the embedding and of the head."""
    module: Any = open_model(base.directory).module
    parts = [part for part in (module.get_input_embeddings(), module.get_output_embeddings()) if part is not None]
    tensors = {id(value) for part in parts for value in part.parameters()}
    names = set(base.names())
    found = {name for name, value in module.named_parameters(remove_duplicate=False) if id(value) in tensors and name in names}
    if not found:
        raise ModelError(f"{base.label}: must store its embedding under the name that the model has it by to join vocabularies, does not.")
    return frozenset(found)


def _united(folder: Path, wanted: dict[str, int], others: Sequence[Vocabulary]) -> dict[str, Any]:
    """The tokenizer of a folder with others' tokens behind its own, which ``wanted`` gets too. Raises ``ModelError`` where they cannot be joined."""
    body = _body(folder)
    model, added = body["model"], body.setdefault("added_tokens", [])
    for other in others:
        theirs = _body(other.folder)
        special = {each["content"]: each for each in theirs.get("added_tokens") or ()}
        for text in sorted(set(other.tokens) - set(wanted), key=lambda text: other.tokens[text]):
            wanted[text] = max(wanted.values(), default=-1) + 1
            if text in special:
                added.append({**special[text], "id": wanted[text]})
            elif model.get("type") == theirs["model"].get("type") == "BPE":
                model["vocab"][text] = wanted[text]
            else:
                raise ModelError(
                    f"{other.folder}: its token {quoted(repr(text))} is an ordinary one of a vocabulary that is not BPE, which cannot be "
                    "joined with the base's. Take tokenizer: base."
                )
        if model.get("type") == "BPE":
            met = set(map(_pair, model["merges"]))
            more = [each for each in theirs["model"].get("merges") or () if _pair(each) not in met]
            model["merges"] += [each for each in more if {*_pair(each), "".join(_pair(each))} <= model["vocab"].keys()]
    if model.get("type") == "BPE":  # numbers of added tokens count on from the vocabulary, unless they are in it
        model["vocab"] |= {each["content"]: each["id"] for each in added}
    return body


def _pair(merge: Any) -> tuple[str, ...]:
    return tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ", 1))


def _body(folder: Path) -> dict[str, Any]:
    file = folder / _FILE
    if not file.is_file():
        raise ModelError(
            f"{folder}: must hold {_FILE} for vocabularies to be compared, does not. Write it with AutoTokenizer's save_pretrained."
        )
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file}: must be JSON in UTF-8, is not: {quoted(error)}.") from None
    if not isinstance(body, dict) or not isinstance(body.get("model"), dict):
        raise ModelError(f"{file}: must be a tokenizer with a model, is not.")
    return body


def _whole(source: Source, name: str) -> torch.Tensor:
    shape = source.entry(name)[1]
    return source.read(name, 0, math.prod(shape)).reshape(shape)
