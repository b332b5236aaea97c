"""The command that clears away what interrupted runs left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modicum.cli import early
from modicum.cli.generated import Command
from modicum.cli.options import AS_JSON, flag, folder, print_json
from modicum.core.budget import readable
from modicum.core.errors import ModicumError, SettingError

if TYPE_CHECKING:
    from modicum.work.leftover import Leftover


@click.command(cls=Command)
@folder("directory", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
@flag("--yes", "Remove them; without it they are only listed.", "files")
@AS_JSON
def clean(directory: Path, yes: bool, as_json: bool) -> None:
    """List what interrupted runs left below DIR, and remove it with --yes.

    Without DIR below the current directory. These are folders such as OUT.partial, from which the same command would continue, and kept answers
    of probes, which are made again when they are needed. A folder that a run is using, or that holds anything that no run wrote, stays.
    """
    early.require_folder(directory)
    from modicum.work.leftover import leftovers

    found = leftovers(directory)
    done = [_gone(each) if yes and not each.stays else each.stays for each in found]
    rows = [_row(each, stays, yes) for each, stays in zip(found, done)]
    print_json(rows) if as_json else _show(directory, rows, yes)
    if yes and (left := [f"{row['path']}: {row['stays']}" for row in rows if row["stays"]]):
        raise SettingError(f"clean: {len(left)} of {len(rows)} stay, {'; '.join(left)}. Move away what is yours, or wait for the run.")


def _gone(each: Leftover) -> str:
    """Remove it; why it stays where that fails."""
    try:
        each.remove()
    except (ModicumError, OSError) as error:
        return str(error)
    return ""


def _row(each: Leftover, stays: str, yes: bool) -> dict[str, Any]:
    former = str(each.former) if each.former is not None else None
    return {
        "path": str(each.path), "of": each.kind, "bytes": each.bytes, "seconds": each.age, "stays": stays, "former": former,
        "removed": yes and not stays,
    }  # fmt: skip


def _show(directory: Path, rows: list[dict[str, Any]], yes: bool) -> None:
    from modicum.cli.printing import print_line, print_table
    from modicum.cli.progress import lasting

    if not rows:
        print_line(f"{directory}: no run has left anything.")
        return
    table = [(row["path"], row["of"], readable(row["bytes"]), lasting(row["seconds"]), _state(row)) for row in rows]
    print_table(("folder", "left by", "size", "last written, ago", "state"), table)
    free = sum(row["bytes"] for row in rows if not row["stays"])
    print_line(f"{readable(free)} {'are removed' if yes else 'may go: modicum clean --yes removes them'}.")


def _state(row: dict[str, Any]) -> str:
    back = f"; the former result in it goes back to {row['former']}" if row["former"] and not row["stays"] else ""
    return f"stays: {row['stays']}" if row["stays"] else f"{'removed' if row['removed'] else 'may go'}{back}"
