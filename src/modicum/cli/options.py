"""Options that several commands share, and what is read off them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from modicum.cli.generated import from_settings
from modicum.core.budget import Budget
from modicum.fit.request import Request
from modicum.measure.settings import Settings

if TYPE_CHECKING:
    from modicum.cli.progress import Progress


def options(*added: Callable) -> Callable:
    """Several options as one decorator, in the order in which they stand."""

    def add(command: Callable) -> Callable:
        for option in reversed(added):
            command = option(command)
        return command

    return add


def flag(name: str, help: str) -> Callable:
    """An option without a value."""
    return click.option(name, is_flag=True, help=help)


AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, and nothing else.")
QUIET = flag("--quiet", "Show no progress; without it stderr has a bar, or where it is no terminal a line per stage and minute.")
_OPENING = ("allow_pickle", "trust_remote_code")
OPENING = options(*from_settings(Settings, only=_OPENING))
TRUST = options(*from_settings(Settings, only=("overwrite", *_OPENING, "allow_fallback")))
JUDGED = options(*from_settings(Settings, only=("output", "classes")))
TEXT_COLUMN = options(*from_settings(Settings, only=("text_column",)))
COMPUTE = options(*from_settings(Settings, only=("compute",)))
# Every setting of measuring, and of fitting; where it is written, each command says itself.
MEASURING = options(*from_settings(Settings, leave=("out",)))
FITTING = options(*from_settings(Budget), *from_settings(Request, leave=("out",)))


def given(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that stand on the command line; what the others are by default, the library says."""
    context = click.get_current_context()
    return {name: value for name, value in settings.items() if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}


def print_json(value: Any) -> None:
    """A JSON value on stdout."""
    click.echo(json.dumps(value, indent=1))


def progress(quiet: bool) -> Progress:
    """Progress that suits where stderr goes."""
    from modicum.cli.progress import progress

    return progress(quiet=quiet)
