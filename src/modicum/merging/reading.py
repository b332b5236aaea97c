"""A merge read from a file that people write: ours, or mergekit's as far as both have the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modicum.core.config import read_tree
from modicum.core.errors import SettingError, near, quoted
from modicum.merging.mergekit import converted, mixed
from modicum.merging.plan import MOST, Entry, Expert, Plan, aligned, layer_range, mixture_of, number, text, weight_of, whole

_NAMES = {
    "plan": {"base", "method", "models", "slices", "dtype", "seed", "tokenizer"},
    "model": {"model", "minus", "weight", "layers"},
    "slice": {"sources"},
    "mixture": {"base", "experts", "active", "gate", "dtype", "seed"},
    "expert": {"model", "prompts", "against"},
}


def read_plan(path: str | Path) -> Plan:
    """Read our plan or mergekit's file. Raises ``SettingError`` naming what a plan cannot say."""
    who = f"plan {path}"
    body = read_tree(path, "plan")
    if not isinstance(body, dict):
        raise SettingError(f"{who}: must be a table with base, method and models, is none.")
    if "merge_method" in body:
        return converted(body, who)
    if "experts" in body:
        return mixed(body, who) if "base_model" in body else _mixture(body, who)
    _known(body, "plan", who)
    models = whole(tuple(_entry(each, who) for each in _list(body.get("models"), f"{who}: models")), who)
    slices = tuple(_slice(each, who) for each in _list(body.get("slices"), f"{who}: slices"))
    if bool(models) == bool(slices):
        raise SettingError(f"{who}: must have models or slices, has {'both' if models else 'neither'}.")
    base = body.get("base") or (slices[0][0].model if slices else None)
    return Plan(
        text(base, f"{who}: base"), text(body.get("method", "ties"), f"{who}: method"), models, slices, _or_none(body.get("dtype"), f"{who}: dtype"),
        int(number(body.get("seed", "0"), f"{who}: seed", whole=True)), _or_none(body.get("tokenizer"), f"{who}: tokenizer"),
    )  # fmt: skip


def _mixture(body: Mapping[str, Any], who: str) -> Plan:
    _known(body, "mixture", who)
    experts = []
    for each in _list(body["experts"], f"{who}: experts"):
        one = {"model": each} if isinstance(each, str) else each
        if not isinstance(one, dict):
            raise SettingError(f"{who}: an expert must be a name or a table, is {quoted(repr(one), 60)}.")
        _known(one, "expert", who)
        said = {key: tuple(text(line, f"{who}: {key}") for line in _list(one.get(key), f"{who}: {key}")) for key in ("prompts", "against")}
        experts.append(Expert(text(one.get("model"), f"{who}: model"), **said))
    base, gate = text(body.get("base"), f"{who}: base"), text(body.get("gate", "hidden"), f"{who}: gate")
    return mixture_of(
        who, experts, base, gate, body.get("active", min(2, len(experts))),
        _or_none(body.get("dtype"), f"{who}: dtype"), int(number(body.get("seed", "0"), f"{who}: seed", whole=True)),
    )  # fmt: skip


def _or_none(value: Any, who: str) -> str | None:
    return None if value is None else text(value, who)


def _list(value: Any, who: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > MOST:
        raise SettingError(f"{who}: must be a list of at most {MOST}, is {quoted(repr(value), 60)}.")
    return value


def _known(body: Mapping[str, Any], kind: str, who: str) -> None:
    for name in body:
        if name not in _NAMES[kind]:
            raise SettingError(
                f"{who}: {'an' if kind == 'expert' else 'a'} {kind} has no {quoted(repr(name), 60)}. {near(name, _NAMES[kind])}"
            )


def _entry(value: Any, who: str) -> Entry:
    if isinstance(value, str):
        return Entry(text(value, f"{who}: model"))
    if not isinstance(value, dict):
        raise SettingError(f"{who}: a model must be a name or a table, is {quoted(repr(value), 60)}.")
    _known(value, "model", who)
    weight = None if value.get("weight") is None else weight_of(value["weight"], f"{who}: weight")
    layers = None if value.get("layers") is None else layer_range(value["layers"], f"{who}: layers")
    return Entry(text(value.get("model"), f"{who}: model"), weight, _or_none(value.get("minus"), f"{who}: minus"), layers)


def _slice(value: Any, who: str) -> tuple[Entry, ...]:
    if isinstance(value, dict) and "model" in value:
        value = {"sources": [value]}
    if not isinstance(value, dict):
        raise SettingError(f"{who}: a slice must be a table, is {quoted(repr(value), 60)}.")
    _known(value, "slice", who)
    return aligned(tuple(_entry(each, who) for each in _list(value.get("sources"), f"{who}: sources")), who)
