"""Facts that a model is to know: a prompt and what follows it, told apart from what must stay as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modicum.core.errors import DataError, quoted
from modicum.data.objects import objects

_KEYS = ("prompt", "target")


@dataclass(frozen=True)
class Fact:
    """After ``prompt`` stands ``target``, as they are written, with the space between them in either.

    ``subject`` is the part of the prompt that the fact is of, empty where nobody said. After ``paraphrases`` the target is to stand too;
    what the model says after ``neighbours`` is to stay. ``where`` names the place in a file.
    """

    prompt: str
    target: str
    subject: str = ""
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    where: str = "fact"

    def __post_init__(self) -> None:
        for name, text in (("prompt", self.prompt), ("target", self.target)):
            if not text.strip():
                raise DataError(f"facts: {self.where} must have a {name}, has none. Mend or remove it.")
        if self.subject and self.subject not in self.prompt:
            raise DataError(
                f"facts: {self.where} must have its subject in its prompt: {quoted(repr(self.subject), 60)} is not in "
                f"{quoted(repr(self.prompt), 100)}. Mend it, or leave the subject out."
            )


def read_facts(path: str | Path) -> tuple[Fact, ...]:
    """Facts of a file: JSON lines with ``prompt``, ``target``, and perhaps ``subject``, ``paraphrases`` and ``neighbours``; or zsRE or CounterFact
    as they are published, of which the edited answer is the target.

    A fact that stands there twice counts once. Raises ``DataError`` for what cannot be read, for a subject that is not in its prompt, and for facts
    that contradict each other.
    """
    return distinct(_fact(where, row) for where, row in objects(Path(path), "facts"))


def distinct(facts: Iterator[Fact] | Sequence[Fact]) -> tuple[Fact, ...]:
    """Each fact once. Raises ``DataError`` for two that give one prompt, or a paraphrase, two targets: both are named."""
    known: dict[str, Fact] = {}
    kept: dict[Fact, None] = {}
    for fact in facts:
        for prompt in (fact.prompt, *fact.paraphrases):
            other = known.setdefault(prompt.strip(), fact)
            if other.target.strip() != fact.target.strip():
                raise DataError(
                    f"facts: {other.where} and {fact.where} must not contradict each other, and after {quoted(repr(prompt), 80)} one has "
                    f"{quoted(repr(other.target), 40)}, the other {quoted(repr(fact.target), 40)}. Remove one."
                )
        if known[fact.prompt.strip()] is fact or known[fact.prompt.strip()].prompt.strip() != fact.prompt.strip():
            kept.setdefault(fact)
    return tuple(kept)


def _fact(where: str, row: Mapping[str, Any]) -> Fact:
    """A fact of any of the known layouts."""
    if "requested_rewrite" in row:
        return _counterfact(where, row)
    if "src" in row and "alt" in row:
        return _zsre(where, row)
    for name in _KEYS:
        if name not in row:
            raise DataError(f"facts: {where} must have a text as {name}, has {quoted(', '.join(map(str, row)) or 'nothing')}. Mend it.")
        if not isinstance(row[name], str):
            raise DataError(
                f"facts: {where} must have a text as {name}, has {quoted(json.dumps(row[name], default=str), 60)} there. Mend it."
            )
    return Fact(
        row["prompt"],
        row["target"],
        _text(where, row, "subject"),
        _texts(where, row, "paraphrases"),
        _texts(where, row, "neighbours"),
        where,
    )


def _counterfact(where: str, row: Mapping[str, Any]) -> Fact:
    asked = row["requested_rewrite"]
    target = asked.get("target_new") if isinstance(asked, dict) else None
    if not (isinstance(target, dict) and all(isinstance(asked.get(name), str) for name in ("prompt", "subject"))):
        raise DataError(f"facts: {where} must be as in CounterFact, with prompt, subject and target_new in its requested_rewrite. Mend it.")
    prompt = asked["prompt"].replace("{}", asked["subject"])
    alike, apart = (_texts(where, row, name) for name in ("paraphrase_prompts", "neighborhood_prompts"))
    return Fact(prompt, _spaced(_text(where, target, "str")), asked["subject"], alike, apart, where)


def _zsre(where: str, row: Mapping[str, Any]) -> Fact:
    rephrased, apart = _text(where, row, "rephrase"), _text(where, row, "loc")
    subject = _text(where, row, "subject")
    if subject not in (prompt := _text(where, row, "src")):
        subject = ""  # some questions of the published file spell it otherwise
    return Fact(prompt, _spaced(_text(where, row, "alt")), subject, (rephrased,) if rephrased else (), (apart,) if apart else (), where)


def _spaced(target: str) -> str:
    """Published targets stand without the space before them."""
    return target if target.startswith(" ") or not target else f" {target}"


def _text(where: str, row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise DataError(f"facts: {where} must have a text as {name}, has {quoted(json.dumps(value), 60)}. Mend it.")
    return value or ""


def _texts(where: str, row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = row.get(name) or []
    if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value):
        raise DataError(f"facts: {where} must have a list of texts as {name}, has {quoted(json.dumps(value), 60)}. Mend it.")
    return tuple(value)
