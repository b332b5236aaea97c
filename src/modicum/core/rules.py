"""Rules by layer, as they are written: ``lm_head: bits=8 group=32``, ``*down_proj: method=gptq``, ``*.layers.0.*: keep``, or a whole option."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from modicum.core import grammar, settings
from modicum.core.errors import SettingError, near, quoted
from modicum.core.method import made, named

# How the method is named among the settings of a rule.
METHOD = "method"
# Families that work on more than a layer.
_WIDER = ("drop",)
_FORM = "Write it as 'lm_head: bits=8 group=32'"


@dataclass(frozen=True)
class Rule:
    """What holds for the layers whose names match ``pattern``: settings, ``keep``, or an option, as ``text`` says."""

    pattern: str
    text: str

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read ``PATTERN: what holds``. Raises ``SettingError`` for what is no rule."""
        pattern, *rest = re.split(r":\s", text.strip(), maxsplit=1)
        if not rest or not pattern.strip() or not rest[0].strip():
            raise SettingError(f"set {quoted(repr(text), 60)}: must have a pattern, a colon, a space, and what holds. {_FORM}.")
        rule = cls(pattern.strip(), " ".join(rest[0].split()))
        rule._check()
        return rule

    def __str__(self) -> str:
        return f"{self.pattern}: {self.text}"

    @cached_property
    def words(self) -> dict[str, str]:
        """Settings that the rule fixes; none where it is ``keep`` or an option."""
        parts = self.text.split()
        if "|" in self.text or "=" not in parts[0]:
            return {}
        found: dict[str, str] = {}
        for part in parts:
            name, equals, value = part.partition("=")
            if not equals or not value:
                raise SettingError(f"set {str(self)!r}: settings are written name=value, got {part!r}. {_FORM}.")
            if name in found:
                raise SettingError(f"set {str(self)!r}: {name} is given twice. Give it once.")
            found[name] = value
        return found

    def matches(self, names: Iterable[str]) -> bool:
        """Whether one of a layer's names is meant."""
        return any(matches(self.pattern, name) for name in names)

    def _check(self) -> None:
        """Raise ``SettingError`` for settings that no method has, or a method that is none of one layer."""
        try:
            methods: Mapping[str, Any] = grammar.known()
            meant: list[Any]
            if not self.words:
                grammar.check(self.text)
                meant = [named(name, methods) for name, _ in grammar.spelled(self.text)]
            else:
                meant = [grammar.meant(self.words[METHOD], methods, trained=False)] if METHOD in self.words else []
                _check_words(self.words, meant or [cls for key, cls in made(methods).items() if key.partition("/")[0] not in _WIDER])
        except SettingError as error:
            raise SettingError(f"set {str(self)!r}: {error}") from None
        if METHOD in self.words and str(meant[0].key()).startswith("repair/"):
            raise SettingError(
                f"set {str(self)!r}: {meant[0].key()} mends what another leaves. Write the option, such as 'gptq bits=3 | eora rank=8'."
            )
        if wide := [cls for cls in meant if str(cls.key()).partition("/")[0] in _WIDER]:
            raise SettingError(
                f"set {str(self)!r}: {wide[0].key()} must not be of one layer, cuts several or leaves out blocks. Put it on --menu."
            )


def _check_words(words: Mapping[str, str], methods: Sequence[Any]) -> None:
    """Raise ``SettingError`` unless some method has each of the settings with that value."""
    for name, value in words.items():
        if name == METHOD:
            continue
        having = [cls for cls in methods if name in settings.hints(cls)]
        if not having:
            known = {field for cls in methods for field in settings.hints(cls)}
            raise SettingError(f"{name!r} is no setting of {'a method' if len(methods) > 1 else methods[0].key()}. {near(name, known)}")
        refused = [error for cls in having if (error := _refusal(cls, name, value)) is not None]
        if len(refused) == len(having):
            said = str(refused[0])  # of a method that nobody named where there are several
            raise SettingError(said if len(methods) == 1 else said.removeprefix(f"{having[0].key().rpartition('/')[2]}."))


def _refusal(cls: Any, name: str, value: str) -> SettingError | None:
    try:
        settings.read(cls, {name: value}, str(cls.key()).rpartition("/")[2])
    except SettingError as error:
        return error
    return None


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern means a name: as a shell would, or as one of the parts between its dots."""
    return fnmatch.fnmatch(name, pattern) or pattern in name.split(".")


def rules_of(given: Mapping[str, str] | Iterable[str | Rule] | str | None) -> tuple[Rule, ...]:
    """Rules as callers write them: a table of patterns, a list of texts, or one text."""
    if isinstance(given, Mapping):
        given = [f"{pattern}: {text}" for pattern, text in given.items()]
    rules = [given] if isinstance(given, str) else list(given or ()) if isinstance(given, Iterable | None) else [given]
    if wrong := [rule for rule in rules if not isinstance(rule, str | Rule)]:
        raise SettingError(f"set: a rule must be a text, got {quoted(repr(wrong[0]), 60)}. {_FORM}.")
    return tuple(rule if isinstance(rule, Rule) else Rule.parse(rule) for rule in rules)
