"""A tokenizer as llama.cpp holds it: tokens with their kinds, merges or scores, and what marks beginnings, ends and turns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from modicum.core.errors import ModelError, quoted
from modicum.export.gguf.fields import Value
from modicum.export.gguf.pretokenizers import name_of
from modicum.models.model import Model

NORMAL, UNKNOWN, CONTROL, GIVEN, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "▁"
# What a token that no merge makes gets in the place of a score.
_NEVER = -1000.0
_MARKS = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "mask": "mask"}  # the format's own spelling


@dataclass(frozen=True)
class Vocabulary:
    """Values of the head that tell a tokenizer, and what is to be said about it."""

    values: Mapping[str, Value]
    notes: tuple[str, ...]


def vocabulary(model: Model, size: int) -> Vocabulary:
    """The tokenizer beside a model whose table has ``size`` rows. Raises ``ModelError`` where llama.cpp has nothing like it."""
    tokenizer = model.tokenizer
    told = _told(model.name, tokenizer)
    kind = "llama" if told["model"].get("byte_fallback") else "gpt2"
    notes = _unlike(model.name, told, kind)
    texts, kinds = _tokens(model.name, told, size)
    values: dict[str, Value] = {"tokenizer.ggml.model": kind}
    if kind == "gpt2":
        split = name_of(told)
        if split is None:
            raise ModelError(
                f"{model.name}: target gguf: the rule by which its tokenizer splits text must be one that llama.cpp has, is not. "
                "Pass --target transformers or modicum."
            )
        notes.append(f"tokenizer: llama.cpp splits text by its rule {split!r}, which is the tokenizer's own")
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in told["model"]["merges"]]
        values |= {"tokenizer.ggml.pre": split, "tokenizer.ggml.merges": merges}
    else:
        values |= {"tokenizer.ggml.pre": "default", "tokenizer.ggml.scores": _scores(told, texts)}
        values["tokenizer.ggml.add_space_prefix"] = any(_prefixed(part) for part in _parts(told))
    values |= {"tokenizer.ggml.tokens": texts, "tokenizer.ggml.token_type": kinds}
    return Vocabulary(values | dict(_marks(tokenizer, model.config)), tuple(notes))


def _told(who: str, tokenizer: Any) -> dict[str, Any]:
    """What ``tokenizer.json`` says, whatever files the tokenizer was read from."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    told = json.loads(backend.to_str()) if backend is not None else {"model": {"type": type(tokenizer).__name__}}
    kind, model = told["model"].get("type"), told["model"]
    if kind != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ModelError(
            f"{who}: target gguf: its tokenizer must merge pairs of bytes or characters, is another kind ({quoted(str(kind))}). "
            "Pass --target transformers or modicum."
        )
    return told


def _unlike(who: str, told: Mapping[str, Any], kind: str) -> list[str]:
    """What llama.cpp leaves undone of a tokenizer. Raises ``ModelError`` for what it would do otherwise."""
    normal = [part["type"] for part in _each(told.get("normalizer"), "normalizers")]
    if kind == "gpt2" and (strange := sorted(set(normal) - {"NFC"})):
        raise ModelError(
            f"{who}: target gguf: llama.cpp takes text as it is, its tokenizer changes it before ({', '.join(strange)}). "
            "Pass --target transformers or modicum."
        )
    return ["tokenizer: it puts accents and their letters together (NFC), which llama.cpp leaves undone"] if "NFC" in normal else []


def _tokens(who: str, told: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """The text and the kind of each row of the table."""
    known = {number: text for text, number in told["model"]["vocab"].items()}
    texts = [known.get(number, f"[PAD{number}]") for number in range(size)]
    kinds = [NORMAL if number in known else UNUSED for number in range(size)]
    if told["model"].get("byte_fallback"):
        kinds = [BYTE if len(text) == 6 and text.startswith("<0x") and text.endswith(">") else kind for text, kind in zip(texts, kinds)]
    added = {one["id"]: one for one in told.get("added_tokens", ())}
    if (most := max({*known, *added})) >= size:
        raise ModelError(f"{who}: target gguf: its table must have a row for every token, has {size} for {most + 1}. Fetch it again.")
    for number, one in added.items():
        kinds[number] = CONTROL if one["special"] else GIVEN
        texts[number] = one["content"] if one["special"] else one["content"].replace(_SPACE, " ")
    unknown = told["model"].get("unk_token")
    if unknown in told["model"]["vocab"]:
        kinds[told["model"]["vocab"][unknown]] = UNKNOWN
    return texts, kinds


def _scores(told: Mapping[str, Any], texts: list[str]) -> list[float]:
    """The earlier a token is merged, the higher: llama.cpp merges the neighbours that make the token of the highest score."""
    found: dict[str, float] = {}
    for place, pair in enumerate(told["model"]["merges"]):
        found.setdefault("".join(pair.split(" ", 1) if isinstance(pair, str) else pair), -float(place))
    return [found.get(text, _NEVER - len(found)) for text in texts]


def _parts(told: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from _each(told.get("normalizer"), "normalizers")
    yield from _each(told.get("pre_tokenizer"), "pretokenizers")


def _each(part: Mapping[str, Any] | None, inside: str) -> Iterator[Mapping[str, Any]]:
    if part is not None:
        yield from (one for each in part[inside] for one in _each(each, inside)) if part["type"] == "Sequence" else [part]


def _prefixed(part: Mapping[str, Any]) -> bool:
    """Whether a step puts a space before a text."""
    prepends = part["type"] == "Prepend" and part.get("prepend") == _SPACE
    return prepends or (part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never")


def _marks(tokenizer: Any, config: Any) -> Iterator[tuple[str, Value]]:
    """Which tokens begin and end texts, whether they are put there, and how a conversation is written."""
    for name, spelt in _MARKS.items():
        number = getattr(tokenizer, f"{name}_token_id", None)
        number = getattr(config, f"{name}_token_id", None) if number is None else number
        number = number[0] if isinstance(number, list) and number else number
        if isinstance(number, int):
            yield f"tokenizer.ggml.{spelt}_token_id", number
    plain, marked = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    yield "tokenizer.ggml.add_bos_token", marked[: len(marked) - len(plain)] == [tokenizer.bos_token_id] or marked[:1] != plain[:1]
    yield "tokenizer.ggml.add_eos_token", marked[-1:] != plain[-1:]
    template = getattr(tokenizer, "chat_template", None)
    template = template.get("default") if isinstance(template, dict) else template
    if isinstance(template, str):
        yield "tokenizer.chat_template", template
