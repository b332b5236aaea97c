"""How llama.cpp calls the rules by which byte-level tokenizers split text before they merge, found by the rule itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_CASED = (f"{_BEFORE}{_UPPER}*{_LOWER}+", f"{_BEFORE}{_UPPER}+{_LOWER}*")
_PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# The rule of GPT-2, which tokenizers have built in.
_BUILT_IN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_THREES = rf"{_CONTRACTED}|{_BEFORE}\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_SINGLES = rf"{_CONTRACTED}|{_BEFORE}\p{{L}}+|\p{{N}}|{_REST}"

# How a rule is told whose matches are the pieces.
_BY_MATCHES = {("Isolated", False), ("Removed", True)}

# Rules in their order, and whether a whole word that is a token needs no merges; the name llama.cpp has for both.
_KNOWN: dict[tuple[tuple[str, ...], bool], str] = {
    ((_BUILT_IN,), False): "gpt-2",
    ((r"\p{N}", _BUILT_IN), False): "smollm",
    ((_THREES,), True): "llama-bpe",
    ((_THREES,), False): "dbrx",
    ((_SINGLES,), False): "qwen2",
    (("punctuation", _BUILT_IN, r"\p{N}+", "[0-9][0-9][0-9]"), False): "falcon",
    ((rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_PATHS}",), True): "tekken",
    ((rf"{_CASED[0]}{_CONTRACTED}?|{_CASED[1]}{_CONTRACTED}?|\p{{N}}{{1,3}}|{_PATHS}",), False): "gpt-4o",
}


def name_of(tokenizer: Mapping[str, Any]) -> str | None:
    """llama.cpp's name for how a tokenizer splits text, by the text of its ``tokenizer.json``; None where it has none."""
    rules = tuple(_rules(tokenizer.get("pre_tokenizer")))
    return _KNOWN.get((rules, bool(tokenizer["model"].get("ignore_merges"))))


def rules_of(name: str) -> tuple[tuple[str, ...], bool] | None:
    """The rules that llama.cpp calls so, and whether whole words need no merges; None for a name that is not among these."""
    return next((key for key, known in _KNOWN.items() if known == name), None)


def built_in(rule: str) -> bool:
    """Whether tokenizers know a rule without being told."""
    return rule == _BUILT_IN


def _rules(part: Mapping[str, Any] | None) -> Iterator[str]:
    """Each rule that splits text, in the order in which they are applied."""
    kind = part.get("type") if part else None
    if part is None or (kind == "ByteLevel" and not part.get("use_regex", True)):
        return
    if kind == "Sequence":
        for one in part["pretokenizers"]:
            yield from _rules(one)
    elif kind == "ByteLevel" and not part.get("add_prefix_space"):
        yield _BUILT_IN
    elif kind == "Digits":
        yield r"\p{N}" if part.get("individual_digits") else r"\p{N}+"
    elif kind == "Punctuation" and part.get("behavior") == "Contiguous":
        yield "punctuation"
    elif kind == "Split" and "Regex" in part["pattern"] and (part.get("behavior"), bool(part.get("invert"))) in _BY_MATCHES:
        yield part["pattern"]["Regex"]
    else:
        yield f"unknown {kind}"
