"""Lines, rows and tables on stdout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

# Lines of a table that is written to a file or a pipe, where no window limits them.
_PIPE_WIDTH = 200
_PICTURE_WIDTH = 100


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)


def print_line(line: str) -> None:
    """One line, never wrapped: a path or a sentence stays whole for who copies it."""
    _console().print(Text(line), soft_wrap=True)


def print_picture(receipt: Mapping[str, Any]) -> None:
    """What a run came to as a picture of characters; in colours where a terminal shows them."""
    from modicum.cli.picture import picture

    console = _console()
    for line in picture(receipt, min(console.width, _PICTURE_WIDTH), unicode=console.encoding.lower().startswith("utf")):
        console.print(line, no_wrap=True, overflow="crop", crop=True)


def print_rows(*rows: tuple[str, str]) -> None:
    """Names, and what each stands for."""
    for name, value in rows:
        print_line(f"{name + ':':<20} {value}")


def print_table(names: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    """Rows under the names of their columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    _console().print(table)
