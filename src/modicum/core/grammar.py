"""How options are written, and what they may say: read off the methods' files, so that a slip is told before anything heavy is imported."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from modicum.core import settings
from modicum.core.errors import SettingError, quoted
from modicum.core.method import FAMILIES, meant, named, registry

KEEP = "keep"
_LONGEST = 1000  # characters of an option's text
_TAKING = ("quantize", "prune", "factor")  # families whose methods take a weight as it is, but for those that wrap any form
_ROOT = Path(__file__).parents[1]
# What the files of methods write their settings with.
_WORDS = {"param": settings.param, "int": int, "float": float, "str": str, "bool": bool}


def spelled(text: str) -> list[tuple[str, dict[str, str]]]:
    """Names and settings of an option's steps, as they are written. Raises ``SettingError`` for what is no option."""
    if text.strip() == KEEP:
        return []
    if len(text) > _LONGEST:
        raise SettingError(f"option {quoted(repr(text), 60)}: must have at most {_LONGEST} characters, has {len(text)}.")
    steps: list[tuple[str, dict[str, str]]] = []
    for part in text.split("|"):
        try:
            words = shlex.split(part)
        except ValueError as error:
            raise SettingError(f"option {text!r}: cannot be read ({error}). Write it as 'gptq bits=4 group=64 | eora rank=8'.") from None
        if not words:
            raise SettingError(f"option {text!r}: holds an empty step. Write it as 'gptq bits=4 group=64 | eora rank=8'.")
        name, given = words[0], {}
        if short := re.fullmatch(r"int(\d+)", name):
            name, given = "gptq", {"bits": short[1]}
        elif name in ("fp8", "fp16"):
            name, given = {"fp8": "float8", "fp16": "half"}[name], {}
        for word in words[1:]:
            key, equals, value = word.partition("=")
            if not equals:
                raise SettingError(f"option {text!r}: settings are written name=value, got {word!r}.")
            if key in given:
                raise SettingError(f"option {text!r}: {key} is given twice. Give it once.")
            given[key] = value
        steps.append((name, given))
    return steps


def check(text: str, *, trained: bool = False) -> None:
    """Raise ``SettingError`` for an option that names no method, settings that its method lacks, or a ``trained`` one unless it may be."""
    said = spelled(text)
    found = [meant(name, known(), trained=trained, closing=0 < place == len(said) - 1) for place, (name, _) in enumerate(said)]
    for cls, (name, given) in zip(found, said):
        settings.read(cls, given, name)
    if not trained:
        require_order(text, found)


def require_order(text: str, steps: Sequence[Any]) -> None:
    """Raise ``SettingError`` where a step that takes a weight as it is follows one that changed it, one that repairs follows none, or one that wraps
    its like.
    """
    families, names = zip(*(step.key().split("/") for step in steps)) if steps else ((), ())
    for place, family in enumerate(families):
        before = [names[other] for other in range(place) if families[other] in _TAKING]
        if family in _TAKING and before and not steps[place].wraps:
            raise SettingError(
                f"option {text!r}: {names[place]} must come first, since it takes a weight as it is, and comes after {before[0]}. Leave one out."
            )
        if steps[place].wraps and names[place] in names[:place]:
            raise SettingError(f"option {text!r}: {names[place]} must stand in it once, comes twice. Leave one of them out.")
        if family == "repair" and not place:
            raise SettingError(
                f"option {text!r}: {names[place]} must follow a step that changes the weight, none comes before it. Write it as "
                f"'gptq bits=4 | {names[place]}'."
            )


def read_merge(text: str, methods: Mapping[str, type]) -> Any:
    """The one of ``methods`` that a text names and that merges, with its settings. Raises ``SettingError``."""
    steps = spelled(text)
    merges = {key: cls for key, cls in methods.items() if key.startswith("merge/")}
    others = {word for key in methods.keys() - merges.keys() for word in (key, key.partition("/")[2])}
    if len(steps) != 1 or steps[0][0] in others - {key.partition("/")[2] for key in merges}:
        raise SettingError(f"method {text!r}: must name one method that merges, such as ties. See modicum list --family merge.")
    name, given = steps[0]
    return settings.read(named(name, merges), given, name)


def known() -> Mapping[str, type]:
    """Settings of every method by key; a script's own methods are known once it has registered them."""
    return registry() if registry.cache_info().currsize else outlines()


@cache
def outlines() -> dict[str, type]:
    """Every method's settings, by key: dataclasses of the same name and fields, made from the text of its file."""
    paths = [(family, path) for family in FAMILIES for path in sorted((_ROOT / family).glob("[!_]*.py"))]
    return {f"{family}/{path.stem}": _outline(f"{family}/{path.stem}", path) for family, path in paths}


@cache
def of_room(room: str) -> dict[str, type]:
    """Settings of the methods of a room that are no steps of an option, by name: of files whose class has a ``paper``, or is ``named``."""
    paths = (path for path in sorted((_ROOT / room).glob("[!_]*.py")) if _is_recipe(_class(path, _camel(path.stem))))
    return {path.stem: _outline(f"{room}/{path.stem}", path) for path in paths}


def _is_recipe(cls: ast.ClassDef | None) -> bool:
    said = {node.target.id for node in cls.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)} if cls else set()
    return bool(said & {"paper", "named"})


def _wraps(cls: ast.ClassDef | None) -> bool:
    said = [node.target.id for node in cls.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)] if cls else []
    return "wraps" in said


def _camel(stem: str) -> str:
    return "".join(word.capitalize() for word in stem.split("_"))


def _class(path: Path, name: str) -> ast.ClassDef | None:
    return next((node for node in _parsed(path).body if isinstance(node, ast.ClassDef) and node.name == name), None)


def _outline(key: str, path: Path) -> type:
    name = _camel(path.stem)
    words = {"__post_init__": settings.check, "key": staticmethod(lambda: key), "wraps": _wraps(_class(path, name))}
    return dataclasses.make_dataclass(name, _settings(path, name), frozen=True, kw_only=True, namespace=words)


def _settings(path: Path, name: str) -> list[tuple]:
    """Fields of a class and of those it inherits from, in their order."""
    body = _parsed(path).body
    homes = {alias.name: node.module for node in body if isinstance(node, ast.ImportFrom) for alias in node.names}
    cls = _class(path, name)
    if cls is None:
        home = homes.get(name) or ""
        return _settings(_ROOT.joinpath(*home.split(".")[1:]).with_suffix(".py"), name) if home.startswith("modicum.") else []
    found: dict[str, tuple] = {}
    for base in cls.bases:
        if isinstance(base, ast.Name):
            found |= {field[0]: field for field in _settings(path, base.id)} if base.id in homes or _stands(body, base.id) else {}
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "param":
            assert isinstance(node.target, ast.Name)
            found[node.target.id] = (node.target.id, _evaluated(node.annotation), _evaluated(node.value))
    return list(found.values())


def _stands(body: list[ast.stmt], name: str) -> bool:
    return any(isinstance(node, ast.ClassDef) and node.name == name for node in body)


def _evaluated(node: ast.expr) -> object:
    return eval(compile(ast.Expression(node), "<settings>", "eval"), dict(_WORDS))


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
