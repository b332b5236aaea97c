"""Which tokens a vocabulary cannot do without, and a tokenizer's files under new numbers."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from modicum.core import files
from modicum.core.errors import BudgetError, ModelError

Number = Callable[[int], int]
Table = Mapping[int, int]
"""New id by old id, of the tokens that stay; in the order of the old ids."""

KINDS = ("BPE", "Unigram", "WordPiece")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_IDS = re.compile(r"(?:^|_)token_(?:ids?|index)$|^(?:lang|task)_to_id$|^force_words_ids$")
_BY_TOKEN = ("vocab.json", "added_tokens.json")
# Vocabularies in formats that are not rewritten: beside a rewritten tokenizer.json they would give the old ids to whoever prefers them.
# And the receipts of earlier runs, which speak of another model.
_FOREIGN = (
    *(".model", ".spm", ".tiktoken", ".bpe", ".codes", ".vocab", "tekken.json", "dict.txt"),
    *("receipt.json", "plan.json", "report.html", "run.yaml"),
)


def read_tokenizer(directory: Path) -> dict[str, Any]:
    """The ``tokenizer.json`` of a directory, as JSON. Raises ``ModelError`` for none, or one whose kind cannot be trimmed."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{directory}: must hold tokenizer.json, does not. Write it with AutoTokenizer's save_pretrained.")
    body = read_json(path)
    if kind(body) not in KINDS:
        raise ModelError(f"{path}: its tokenizer must be {', '.join(KINDS[:-1])} or {KINDS[-1]}, is {kind(body)}. Keep this vocabulary.")
    if body["model"].get("dropout"):
        raise ModelError(f"{path}: must encode a text in one way, has a dropout of {body['model']['dropout']}. Set dropout to null.")
    return body


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file. Raises ``ModelError`` for anything else."""
    try:
        body = files.read_json(path)
    except ValueError as error:
        raise ModelError(f"{path}: must be a readable JSON file ({error}). Fetch it again.") from None
    if not isinstance(body, dict):
        raise ModelError(f"{path}: must hold a JSON object, holds {type(body).__name__}. Fetch it again.")
    return body


def kind(body: Mapping[str, Any]) -> str:
    """Which model of the tokenizers library this is; files written long ago do not say, but show it."""
    model = body.get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        return "none"
    if "type" in model:
        return str(model["type"])
    if "merges" in model:
        return "BPE"
    if isinstance(model["vocab"], list):
        return "Unigram"
    return "WordPiece" if "max_input_chars_per_word" in model else "WordLevel"


def pieces(body: Mapping[str, Any]) -> dict[str, int]:
    """Ids of the model's own pieces; added tokens may lie beside them."""
    vocab = body["model"]["vocab"]
    return {entry[0]: index for index, entry in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)


# What must stay


def required(body: Mapping[str, Any]) -> set[int]:
    """Ids without which the tokenizer breaks or a text can no longer be written: added tokens, those that templates insert, and the alphabet."""
    found = {token["id"] for token in body.get("added_tokens") or ()}
    _renumbered_template(body.get("post_processor"), noting(found))
    if body.get("padding"):
        found.add(body["padding"]["pad_id"])
    return found | _alphabet(body)


def _alphabet(body: Mapping[str, Any]) -> set[int]:
    """What any text can be spelled with as well as before.

    Single characters in every position they have a piece for, bytes where the model falls back on them, and the unknown token. WordPiece
    and Unigram also keep the pieces that hold a character with no piece of its own: nothing else could spell it. Unigram keeps the piece
    of least score, from which the cost of an unknown character is reckoned.
    """
    model, vocab = body["model"], pieces(body)
    letters = {piece: _letters(piece, model) for piece in vocab}
    found = {vocab[piece] for piece, spelled in letters.items() if len(spelled) == 1}
    found |= {index for piece, index in vocab.items() if model.get("byte_fallback") and _BYTE.fullmatch(piece)}
    found |= {vocab[piece] for piece in [model.get("unk_token")] if piece in vocab} | ({model.get("unk_id")} - {None})
    if kind(body) != "BPE":
        found |= {vocab[piece] for piece, spelled in letters.items() if any(letter not in vocab for letter in spelled)}
    if kind(body) == "Unigram":
        found.add(min(range(len(model["vocab"])), key=lambda index: model["vocab"][index][1]))
    return found


def _letters(piece: str, model: Mapping[str, Any]) -> list[str]:
    """The single-character pieces that spell a piece, marked by their place in a word as the model marks them."""
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    inside = bool(prefix) and piece.startswith(prefix) and len(piece) > len(prefix)
    body = piece[len(prefix) :] if inside else piece
    last = bool(suffix) and body.endswith(suffix) and len(body) > len(suffix)
    letters = list(body[: -len(suffix)] if last else body)
    marked = [letter if place == 0 and not inside else prefix + letter for place, letter in enumerate(letters)]
    return [*marked[:-1], marked[-1] + suffix] if last else marked


def ancestors(body: Mapping[str, Any]) -> dict[int, set[int]]:
    """By token, the tokens that merges make it of; empty where the model has no merges.

    BPE merges the pair of least rank again and again. Where a text's tokens all stay, and with each token the parts of every merge that
    makes it, every merge the text went through stays. Then at each step the pair of least rank among those that stay is the one among
    all, and the text's encoding is what it was. Only one of several merges to the same token can ever be used; all are followed.
    """
    model, vocab = body["model"], pieces(body)
    found: dict[int, set[int]] = {}
    for merge in model.get("merges") or ():
        left, right, made = _merge(merge, model)
        found.setdefault(vocab[made], set()).update((vocab[left], vocab[right]))
    return found


def _merge(merge: str | list[str], model: Mapping[str, Any]) -> tuple[str, str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right, left + right[len(model.get("continuing_subword_prefix") or "") :]


def closure(tokens: Iterable[int], parents: Mapping[int, set[int]]) -> set[int]:
    """Tokens with all their ancestors."""
    found: set[int] = set()
    waiting = list(tokens)
    while waiting:
        if (token := waiting.pop()) not in found:
            found.add(token)
            waiting += parents.get(token, ())
    return found


def choose(always: set[int], counts: Mapping[int, int], parents: Mapping[int, set[int]], size: int | None, who: str) -> list[int]:
    """Ids that stay, sorted: ``always``, then by falling count (ties by id) each that fits within ``size`` with its ancestors.

    Raises ``BudgetError`` where ``always`` alone is more than ``size``.
    """
    kept = closure(always, parents)
    if size is not None and len(kept) > size:
        raise BudgetError(
            f"{who}: a vocabulary must have at least {len(kept)} tokens, the special ones and those that any text is spelled with, "
            f"and size is {size}. Raise it."
        )
    for token in sorted(counts, key=lambda token: (-counts[token], token)):
        more = closure([token], parents) - kept
        if size is None or len(kept) + len(more) <= size:
            kept |= more
    return sorted(kept)


# New numbers


def noting(found: set[int]) -> Number:
    """Leave every id as it is, and put it into ``found``."""

    def note(index: int) -> int:
        found.add(index)
        return index

    return note


def renumbered_tokenizer(body: Mapping[str, Any], table: Table) -> dict[str, Any]:
    """A ``tokenizer.json`` with the tokens of ``table`` alone, under their new ids."""
    made = copy.deepcopy(dict(body))
    model = made["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = [entry for index, entry in enumerate(model["vocab"]) if index in table]
        model["unk_id"] = None if model.get("unk_id") is None else table[model["unk_id"]]
    else:
        model["vocab"] = {piece: table[index] for piece, index in model["vocab"].items() if index in table}
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if all(piece in model["vocab"] for piece in _merge(merge, model))]
    made["added_tokens"] = [{**token, "id": table[token["id"]]} for token in made.get("added_tokens") or ()]
    made["post_processor"] = _renumbered_template(made.get("post_processor"), table.__getitem__)
    if made.get("padding"):
        made["padding"]["pad_id"] = table[made["padding"]["pad_id"]]
    return made


def _renumbered_template(processor: Any, number: Number) -> Any:
    """What a tokenizer puts around a text: ``ids`` in a template, ``["[SEP]", 102]`` in the processors of single models."""
    if isinstance(processor, list):
        return [_renumbered_template(part, number) for part in processor]
    if not isinstance(processor, dict):
        return processor
    made = {name: _renumbered_template(part, number) for name, part in processor.items()}
    made |= {name: [processor[name][0], number(processor[name][1])] for name in ("sep", "cls") if isinstance(processor.get(name), list)}
    return made | ({"ids": [number(index) for index in processor["ids"]]} if "ids" in processor else {})


def renumbered_config(value: Any, number: Number, stays: Callable[[int], bool]) -> Any:
    """A JSON value in which every id of a token is renumbered.

    Fields that end in ``token_id``, ``token_ids`` or ``token_index`` hold ids; what generation suppresses or forbids loses what no
    longer exists.
    """
    if isinstance(value, list):
        return [renumbered_config(part, number, stays) for part in value]
    if not isinstance(value, dict):
        return value
    return {name: _renumbered_field(name, part, number, stays) for name, part in value.items()}


def with_defaults(raw: Mapping[str, Any], resolved: Mapping[str, Any], number: Number) -> dict[str, Any]:
    """``raw`` with those ids written out that it leaves to the defaults of the config's class, ``resolved``, and that get another number."""
    made = dict(raw)
    for name, value in resolved.items():
        if isinstance(value, dict):
            given = raw.get(name)
            if section := with_defaults(given if isinstance(given, dict) else {}, value, number):
                made[name] = section
        elif _IDS.search(str(name)) and name not in raw and _renumbered_ids(value, number) != value:
            made[name] = value
    return made


def _renumbered_field(name: str, value: Any, number: Number, stays: Callable[[int], bool]) -> Any:
    if _IDS.search(str(name)):
        return _renumbered_ids(value, number)
    if name in ("suppress_tokens", "begin_suppress_tokens") and value:
        return [number(index) for index in value if stays(index)]
    if name == "bad_words_ids" and value:
        return [[number(index) for index in word] for word in value if all(map(stays, word))] or None
    if name == "forced_decoder_ids" and value:
        return [[place, _renumbered_ids(index, number)] for place, index in value]
    return renumbered_config(value, number, stays)


def _renumbered_ids(value: Any, number: Number) -> Any:
    if isinstance(value, list):
        return [_renumbered_ids(part, number) for part in value]
    if isinstance(value, dict):
        return {name: _renumbered_ids(part, number) for name, part in value.items()}
    return number(value) if isinstance(value, int) and not isinstance(value, bool) else value


# The files beside it


def companion(path: Path, body: Mapping[str, Any], table: Table, number: Number) -> str | None:
    """Text of a file beside ``tokenizer.json`` that speaks of tokens, under the new ids; None for one that does not.

    ``body`` is the renumbered ``tokenizer.json``.
    """
    if path.name == "merges.txt":
        return _merges_text(path, body)
    if path.name == "vocab.txt":
        vocab = pieces(body)
        return "".join(f"{piece}\n" for piece in sorted(vocab, key=vocab.__getitem__))
    if path.name in _BY_TOKEN:
        return json_text({token: table[index] for token, index in read_json(path).items() if index in table})
    if path.name in ("generation_config.json", "tokenizer_config.json"):
        made = renumbered_config(read_json(path), number, table.__contains__)
        if isinstance(decoder := made.get("added_tokens_decoder"), dict):
            made["added_tokens_decoder"] = {str(number(int(index))): token for index, token in decoder.items()}
        return json_text(made)
    return None


def _merges_text(path: Path, body: Mapping[str, Any]) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in body["model"].get("merges") or ()]
    return "".join(f"{line}\n" for line in ([first] if first.startswith("#version") else []) + lines)


def is_foreign(path: Path, body: Mapping[str, Any]) -> bool:
    """Whether a file holds ids or tokens in a form that is not rewritten here, and so must not stand beside the new ones."""
    if path.name == "vocab.txt":
        return kind(body) != "WordPiece"
    if path.name in _BY_TOKEN:
        return not all(isinstance(index, int) for index in read_json(path).values())
    return path.name.endswith(_FOREIGN)


def json_text(value: Any) -> str:
    """JSON as these files are usually written."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
