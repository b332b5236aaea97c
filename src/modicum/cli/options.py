"""Options that several commands share, and what is read off them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from modicum.cli.filed import called
from modicum.cli.generated import VERBOSE as VERBOSE_MEANT
from modicum.cli.generated import Grouped, from_settings
from modicum.core.budget import Budget
from modicum.core.config import FROM_PYTHON, beneath, require_given
from modicum.core.errors import SettingError
from modicum.core.grammar import known
from modicum.core.settings import SEEDS, bounds
from modicum.fit.request import WANTED, Request
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


def option(*names: str, group: str, help: str, **words: Any) -> Callable:
    """An option that stands under a heading."""
    return click.option(*names, cls=Grouped, group=group, help=help, **words)


class Whole(click.ParamType):
    """A whole number within bounds, told as the library tells it."""

    name = "integer"

    def __init__(self, least: int = 1, most: float = float("inf")):
        self.between = (least, most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number. Raises ``SettingError`` for another."""
        found: int = click.INT.convert(value, param, ctx)
        if not self.between[0] <= found <= self.between[1]:
            raise SettingError(f"{called(param) if param is not None else self.name}: must be {bounds(self.between)}, got {found}.")
        return found


COUNT, SEED = Whole(), Whole(*SEEDS)


def flag(name: str, help: str, group: str = "shown") -> Callable:
    """An option without a value."""
    return option(name, is_flag=True, group=group, help=help)


def model(**words: Any) -> Callable:
    """The model that a command works on: a folder, demo, or an id that no shell can know."""
    return click.argument("model", shell_complete=lambda ctx, _, begun: [*_begun(["demo"], begun), *_folders(begun)], **words)


def folder(name: str, **words: Any) -> Callable:
    """A folder that a command works on."""
    return click.argument(name, shell_complete=lambda ctx, _, begun: _folders(begun), **words)


def key(name: str, **words: Any) -> Callable:
    """A method, by the last part of its name."""
    return click.argument(name, shell_complete=lambda ctx, _, begun: _begun((key.rpartition("/")[2] for key in known()), begun), **words)


def _begun(names: Iterable[str], begun: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(begun)]


def _folders(begun: str) -> list[CompletionItem]:
    return [CompletionItem(begun, type="dir")]


AS_JSON = option("--json", "as_json", is_flag=True, group="shown", help="Print JSON on stdout, and nothing else.")
QUIET = flag("--quiet", "Show no progress; without it stderr has a bar, or where it is no terminal a line per stage and minute.")
VERBOSE = option(
    "-v", "--verbose", is_flag=True, group="shown",
    help="Tell on stderr what is decided, what each layer got, times, events, and warnings of libraries.",
)  # fmt: skip
LOG_FILE = option(
    "--log-file", type=click.Path(path_type=Path), metavar="FILE", group="shown",
    help="Add what --verbose tells to a file, with dates, and the traceback of a fault.",
)  # fmt: skip
_OPENING = ("allow_pickle", "trust_remote_code", "allow_quantized_source")
OPENING = options(*from_settings(Settings, only=_OPENING))
TRUST = options(*from_settings(Settings, only=("overwrite", *_OPENING, "allow_fallback")))
JUDGED = options(*from_settings(Settings, only=("output", "classes")))
TEXT_COLUMN = options(*from_settings(Settings, only=("text_column",)))
COMPUTE = options(*from_settings(Settings, only=("compute",)))
RAM = options(*from_settings(Settings, only=("ram",)))
OVERWRITE = options(*from_settings(Settings, only=("overwrite",)))
# Every setting of measuring, and of fitting; where it is written, each command says itself.
MEASURING = options(*from_settings(Settings, leave=("out",)))
FITTING = options(*from_settings(Budget), *from_settings(Request, leave=("out",)))


def given(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that stand on the command line, and those of a file beside them; what the others are by default, the library says."""
    context = click.get_current_context()
    of = lambda source: {name: value for name, value in settings.items() if context.get_parameter_source(name) is source}
    said, found = of(ParameterSource.COMMANDLINE), of(ParameterSource.DEFAULT_MAP)
    if FROM_PYTHON in context.meta:
        path, names = context.meta[FROM_PYTHON]
        require_given(path, names, said)
    return said | beneath(found, said, WANTED)


# What a command shows while it works, and how it tells the outcome.
SHOWN = options(QUIET, VERBOSE, LOG_FILE, AS_JSON)


def print_json(value: Any) -> None:
    """A JSON value on stdout."""
    click.echo(json.dumps(value, indent=1))


def progress(quiet: bool) -> Progress:
    """Progress that suits where stderr goes."""
    from modicum.cli.progress import progress

    return progress(quiet=quiet, lines=click.get_current_context().meta.get(VERBOSE_MEANT, False))
