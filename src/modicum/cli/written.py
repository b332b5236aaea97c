"""The commands on results that are written: their page, their dense form, and sending them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from modicum.cli import early
from modicum.cli.generated import Command
from modicum.cli.options import OVERWRITE, SHOWN, flag, folder, option, options, print_json
from modicum.core.budget import readable
from modicum.core.errors import SettingError


@click.command(cls=Command)
@folder("directories", metavar="DIR [DIR...]", nargs=-1, required=True)
@options(
    option(
        "--out",
        type=click.Path(path_type=Path),
        default=Path("report.html"),
        show_default=True,
        metavar="FILE",
        group="files",
        help="Page to write.",
    ),
    OVERWRITE,
)
def report(directories: Sequence[str], out: Path, overwrite: bool) -> None:
    """Write the page of one result, or of several side by side.

    Each DIR is one that fit wrote; several must be of one original. Beside them may stand what modicum eval --reference ORIGINAL --json wrote of
    anybody's model. A DIR of edit or forget has a page of its own. The page is one file that opens from disk and asks for no other.
    """
    from modicum.core.output import require_new_file, write_file

    require_new_file(out, overwrite)
    if missing := [each for each in directories if not Path(each).exists()]:
        raise SettingError(f"{missing[0]}: must be a folder that modicum wrote, is none. Check the path.")
    from modicum.fit.compared import receipt_in
    from modicum.receipt.changes import changes
    from modicum.receipt.comparison import comparison
    from modicum.receipt.report import report as page

    if len(directories) == 1 and (changed := changes(Path(directories[0]))) is not None:
        html = changed()
    else:
        html = page(receipt_in(Path(directories[0]))) if len(directories) == 1 else comparison(directories)
    write_file(out, html)
    click.echo(f"{out}: open it in a browser.")


@click.command(cls=Command)
@folder("directory", metavar="DIR")
@options(
    option("--out", type=click.Path(path_type=Path), metavar="DIR2", required=True, group="files", help="Directory to write."),
    OVERWRITE,
)
@SHOWN
def densify(directory: str, out: Path, overwrite: bool, quiet: bool, as_json: bool) -> None:
    """Write the compressed model in DIR as a dense one, for fine-tuning.

    DIR is one that fit wrote for any target, of a class of Transformers. Plain from_pretrained loads the dense model, whose weights are the
    dequantized ones to the bit.
    """
    early.require_results(directory)
    early.check_work(out, overwrite)
    from modicum.fit.dense import densify as run

    made = run(directory, out, overwrite=overwrite)
    if as_json:
        print_json({"out": str(made.out), "bytes": made.bytes, "difference": made.difference, "notes": made.notes})
        return
    click.echo(f"{made.out}: {readable(made.bytes)}, dense; its outputs {_told(made.difference)}.")
    for note in made.notes:
        click.echo(f"note: {note}")


def _told(difference: float) -> str:
    return (
        "are those of the compressed model to the bit"
        if not difference
        else f"differ from the compressed model's by {difference:.1g} of their square"
    )


@click.command(cls=Command)
@folder("directory", metavar="DIR")
@click.argument("repository", metavar="USER/NAME")
@options(flag("--private", "Make the repository one that only its owner sees, where it is not there yet.", "files"))
@SHOWN
def push(directory: str, repository: str, private: bool, quiet: bool, as_json: bool) -> None:
    """Upload the result in DIR to the Hugging Face Hub.

    All files go as they are, the receipt and run.yaml too, which name models and data as they were given to fit, local paths included.
    """
    early.require_results(directory)
    from modicum.fit.push import push as run

    address = run(directory, repository, private=private)
    if as_json:
        print_json({"address": address})
    else:
        click.echo(address)
