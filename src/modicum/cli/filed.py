"""Settings of a command in a file: read where ``--config`` names one, and written beside what the command made."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import click
from click.core import ParameterSource

from modicum.core.config import FROM_PYTHON, Written, read_config

# How options of a click type are written in a file.
_KINDS = {"integer": int, "float": float}
# What stands in no file: where it is written, what lets files run code, and what is only shown.
_UNSAID = ("out", "overwrite", "config", "allow_pickle", "trust_remote_code")


def read(context: click.Context, _: click.Parameter, path: str | None) -> None:
    """Let a file say what the command line does not."""
    if path is None:
        return
    names = {called(each): each for each in _settings(context.command.params)}
    found = read_config(path, {name: _written(each) for name, each in names.items() if name != "config"})
    context.meta[FROM_PYTHON] = (path, found.pop(FROM_PYTHON, ()))
    context.default_map = {names[name].name: value for name, value in found.items()}


def asked(context: click.Context) -> dict[str, Any]:
    """What was said on the command line and in a file, under the names of both."""
    said = (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)
    named = {called(each): each.name or "" for each in _settings(context.command.params)}
    given = {name: context.params[key] for name, key in named.items() if name not in _UNSAID and context.get_parameter_source(key) in said}
    return {name: _plain(value) for name, value in given.items()}


def has_settings(params: Iterable[click.Parameter]) -> bool:
    """Whether a command has settings that a file may say: more than where it writes, and what it shows."""
    return any(getattr(each, "group", "") not in ("", "shown", "files") for each in params)


def called(option: click.Parameter) -> str:
    """The name of an option in a file, and of an argument."""
    return (option.name or "") if isinstance(option, click.Argument) else option.opts[0].lstrip("-").replace("-", "_")


def _settings(params: Iterable[click.Parameter]) -> list[click.Parameter]:
    return [each for each in params if isinstance(each, click.Argument) or getattr(each, "group", "") not in ("", "shown")]


def _written(option: click.Parameter) -> Written:
    """How an option is written in a file."""
    if (said := getattr(option, "written", None)) is not None:
        return said
    if option.nargs < 0:
        return Written(list, several=True)
    return Written(bool if getattr(option, "is_flag", False) else _KINDS.get(option.type.name, str))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
