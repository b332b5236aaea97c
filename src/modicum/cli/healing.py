"""The command that heals a finished result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from modicum.cli import early
from modicum.cli.generated import Command, from_settings
from modicum.cli.options import COUNT, OVERWRITE, SHOWN, folder, option, options, print_json, progress
from modicum.core import grammar, settings
from modicum.train.settings import Loop


@click.command(cls=Command)
@folder("directory", metavar="DIR")
@options(
    option(
        "--method",
        default="norms, held",
        show_default=True,
        metavar="METHODS",
        group="method",
        help="What is trained, by commas: norms, held, scales.",
    ),
    *from_settings(Loop),
    option("--reference", metavar="MODEL", group="files", help="The original; by default the one that the receipt in DIR names."),
    option("--data", metavar="PATH", group="data", help="Text to learn on; by default what DIR was made with."),
    option("--tokens", type=COUNT, metavar="N", group="data", help="Tokens in a sequence; by default as DIR was made."),
    option("--samples", type=COUNT, metavar="N", group="data", help="Sequences to train on; by default as DIR was made."),
    option("--test-samples", type=COUNT, metavar="N", group="data", help="Sequences to report with; by default as DIR was made."),
    option("--text-column", metavar="NAME", group="data", help="Column of a table that holds the text."),
    option("--out", type=click.Path(path_type=Path), metavar="DIR2", required=True, group="files", help="Directory to write."),
    OVERWRITE,
)
@SHOWN
def heal(directory: str, method: str, out: Path, quiet: bool, as_json: bool, **given: Any) -> None:
    """Train what DIR keeps until it answers as its original, in the same bytes.

    DIR is what fit wrote for targets modicum or transformers, or a checkpoint whose zeros stay. Masks, codes and all bytes but those of the numbers
    that move are those of before. An interrupted training goes on where it was.
    """
    loop = settings.read(Loop, {name: str(given.pop(name)) for name in Loop.__dataclass_fields__}, "heal")
    for word in method.split(","):
        grammar.check(word.strip(), trained=True)
    early.check_work(out, given["overwrite"], directory, given["reference"], read=[given["data"]])
    from modicum.fit.finished import heal as run
    from modicum.models.quiet import hushed
    from modicum.receipt.report import report as page

    with hushed(), progress(quiet or as_json) as shown:
        made = run(directory, out, method=method, loop=loop, progress=shown, page=page, **given)
    if as_json:
        print_json({"out": str(made.out), **made.receipt})
    else:
        click.echo(f"{made.out}: {told(made.healing)}")


def told(healing: dict[str, Any]) -> str:
    """What healing came to, in one sentence."""
    count, steps = f"{healing['trained']:,} trained numbers", f"{len(healing['losses'])} updates"
    if not healing["taken"]:
        return f"as it was; {count} in {steps} made it no better on validation data."
    test = healing["test"]
    low, high = test["interval"]
    return (
        f"{count} in {steps} and {healing['seconds']:.0f} s; lost {test['before']:.4g} before and {test['after']:.4g} after on {test['sequences']} "
        f"held-out sequences ({test['change']:+.2g}, 95 % {low:+.2g} to {high:+.2g})."
    )
