"""Options of the command line made from settings: names, help, defaults and bounds are said once, where the settings are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem

from modicum.cli import filed
from modicum.core import settings
from modicum.core.config import Written, asking, written
from modicum.core.errors import SettingError

# Headings of the help, in their order; what belongs to none stands under the last.
GROUPS = {
    "budget": "Budget",
    "method": "Method",
    "heal": "Healing",
    "data": "Data",
    "machine": "Machine",
    "files": "Files",
    "shown": "Messages",
}
_LAST = "shown"


# What a shell completes by itself, by what stands for the value in the help.
_PLACES = {"FILE": "file", "PATH": "file", "TEXT": "file", "DIR": "dir", "DIR2": "dir"}


class Grouped(click.Option):
    """An option that stands under a heading; how it is ``written`` in a file, and its ``choices``, where a setting says them."""

    def __init__(self, *names: Any, group: str = "", written: Written | None = None, choices: Iterable[Any] = (), **words: Any):
        super().__init__(*names, **words)
        self.group, self.written, self.choices = group, written, tuple(map(str, choices))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """What the value may be: its choices, or what the shell knows of files."""
        if self.choices:
            return [CompletionItem(choice) for choice in self.choices if choice.startswith(incomplete)]
        place = _PLACES.get(self.metavar or "")
        return [CompletionItem(incomplete, type=place)] if place else super().shell_complete(ctx, incomplete)


CONFIG = Grouped(
    ["--config"], metavar="FILE", is_eager=True, expose_value=False, callback=filed.read, group="files",
    help="YAML or JSON with settings under these names, such as the run.yaml beside a receipt; what the command line says counts.",
)  # fmt: skip

# Where a command's words are kept, and whether it tells more than its progress.
WORDS, VERBOSE = "modicum.words", "modicum.verbose"


class Command(click.Command):
    """A command whose help has headings, whose settings may stand in a file, and that tells more, or to a file, where it is asked to."""

    def __init__(self, name: str | None, **words: Any):
        super().__init__(name, **words)
        self.params += [CONFIG] if filed.has_settings(self.params) else []

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the words as they were given."""
        ctx.meta[WORDS] = [ctx.info_name or "", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command while whoever was asked to listens."""
        verbose, file = ctx.params.pop("verbose", False), ctx.params.pop("log_file", None)
        if verbose and ctx.params.get("quiet"):
            raise SettingError("--quiet and --verbose: one of them must be left out, both came. Pass one.")
        with asking(filed.asked(ctx)):
            if not verbose and file is None:
                return super().invoke(ctx)
            from modicum.cli.told import told

            ctx.meta[VERBOSE] = verbose
            with told(verbose=verbose, file=file, words=ctx.meta[WORDS]):
                return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, heading by heading."""
        rows: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            if isinstance(option, click.Option) and (row := option.get_help_record(ctx)) is not None:
                rows.setdefault(getattr(option, "group", "") or _LAST, []).append(row)
        for group in (group for group in GROUPS if group in rows):
            with formatter.section(GROUPS[group] if len(rows) > 1 else "Options"):
                formatter.write_dl(rows[group])


def from_settings(cls: type, only: Collection[str] = (), leave: Collection[str] = ()) -> list[Callable]:
    """An option for every setting of ``cls`` that stands under a heading: ``only`` some of them, or all but those to ``leave``."""
    kinds, named = settings.hints(cls), [field for field in dataclasses.fields(cls) if field.metadata.get("group")]
    return [_option(field, kinds[field.name]) for field in named if (field.name in only or not only) and field.name not in leave]


def _option(field: dataclasses.Field, kind: Any) -> Callable:
    said, name = field.metadata, f"--{field.name.replace('_', '-')}"
    words: dict[str, Any] = {"help": _sentence(said), "group": said["group"], "cls": Grouped, "written": written(field, kind)}
    words["choices"] = said["choices"] or ()
    kind = words["written"].kind
    if kind is bool:
        return click.option(name, is_flag=True, **words)
    if kind is list:
        return click.option(name, multiple=True, metavar=said["metavar"], **words)
    shown: dict[str, Any] = {} if field.default is None else {"default": field.default, "show_default": True}
    return click.option(name, type=kind, metavar=said["metavar"], **words, **shown)


def _sentence(said: Any) -> str:
    """The help with its choices and bounds."""
    text = said["help"]
    parts = [text[0].upper() + text[1:]]
    if said["choices"]:
        parts.append(f": {_listed(said['choices'])}")
    elif said["between"]:
        parts.append(f"; {settings.bounds(said['between'])}")
    return f"{''.join(parts)}."


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
