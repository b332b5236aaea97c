"""Commands that tell what methods there are, what they do, and whom to cite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from modicum.cli.generated import Command
from modicum.cli.options import AS_JSON, flag, key, option, print_json
from modicum.core.errors import SettingError, near


@click.command("list", cls=Command)
@option("--family", metavar="NAME", group="method", help="Only this family, such as quantize.")
@AS_JSON
def catalogue(family: str | None, as_json: bool) -> None:
    """List all methods."""
    from modicum.cli import show
    from modicum.core.method import FAMILIES
    from modicum.core.recipe import ROOMS

    families = (*FAMILIES, *ROOMS)
    if family is not None and family not in families:
        raise SettingError(f"family {family!r}: is not known. {near(family, families)}")
    methods = [cls for _, cls in sorted(_known().items()) if family in (None, cls.family())]
    print_json([show.facts(cls) for cls in methods]) if as_json else show.methods(methods)


@click.command(cls=Command)
@key("key")
def explain(key: str) -> None:
    """Say what the method KEY does, and its settings."""
    from modicum.cli import show
    from modicum.core.method import named

    show.method(named(key, _known()))


@click.command(cls=Command)
@key("what", metavar="DIR|KEY")
@flag("--plain", "One line a paper instead of BibTeX.")
@AS_JSON
def cite(what: str, plain: bool, as_json: bool) -> None:
    """Print the papers that a result used, or the one behind a method.

    DIR is a directory that fit wrote, KEY a method's name, such as gptq.
    """
    directory = Path(what)
    if directory.is_dir():
        _cite_result(directory, plain, as_json)
        return
    from modicum.core.method import named

    cls: Any = named(what, _known())
    if cls.paper is None:
        raise SettingError(f"method {cls.key()}: comes from no paper, there is nothing to cite. See modicum explain {cls.key()}.")
    _print([{"key": cls.key(), "where": "", "paper": cls.paper}], plain, as_json)


def _known() -> dict[str, Any]:
    """Methods of all kinds by key: steps of an option, merges, and those that edit or forget."""
    from modicum.core.method import registry
    from modicum.core.recipe import every

    return {**registry(), **every()}


def _cite_result(directory: Path, plain: bool, as_json: bool) -> None:
    from modicum.receipt import cited, read_receipt

    if not (directory / "receipt.json").exists():
        raise SettingError(f"{directory}: must hold a receipt.json, holds none. Name a directory that fit wrote, or a method.")
    _print([vars(one) for one in cited(read_receipt(directory / "receipt.json"))], plain, as_json)


def _print(rows: list[dict[str, Any]], plain: bool, as_json: bool) -> None:
    if as_json:
        print_json([row | {"paper": vars(row["paper"]) if row["paper"] else None} for row in rows])
        return
    for row in rows:
        used = f"{row['key']}, {row['where']}" if row["where"] else row["key"]
        if plain:
            click.echo(f"{used}: {row['paper'].plain() if row['paper'] else 'comes from no paper.'}")
        elif row["paper"] is None:
            click.echo(f"% {used}: comes from no paper")
        else:
            click.echo(f"{f'% {used}' + chr(10) if row['where'] else ''}{row['paper'].bibtex(row['key'])}")
