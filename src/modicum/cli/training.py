"""The command that trains a small model from the start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from modicum.cli import early
from modicum.cli.generated import Command, from_settings
from modicum.cli.options import COUNT, OVERWRITE, SHOWN, flag, model, option, options, print_json, progress
from modicum.core import grammar, settings
from modicum.core.budget import Budget, many, readable
from modicum.train.settings import Loop, require_target

_DEFAULT, _AUTO = "rigl", "auto"


@click.command(cls=Command)
@model(metavar="CONFIG")
@options(
    *from_settings(Budget, only=("size", "bpw", "params")),
    option(
        "--method",
        default=_DEFAULT,
        show_default=True,
        metavar="OPTION",
        group="method",
        help="What keeps the weights small, with its settings; auto races those that fit the budget.",
    ),
    *from_settings(Loop),
    option("--target", default="modicum", show_default=True, metavar="NAME", group="method", help="modicum or transformers."),
    flag("--baselines", "Train the dense model too, and dense ones as small.", "method"),
    option("--data", metavar="PATH", group="data", help="Text to learn; the shipped texts without it."),
    option(
        "--tokenizer", metavar="DIR", group="data", help="Where the tokenizer is; by default beside the config. demo for the package's."
    ),
    option("--tokens", type=COUNT, default=256, show_default=True, metavar="N", group="data", help="Tokens in a sequence."),
    option("--samples", type=COUNT, default=4096, show_default=True, metavar="N", group="data", help="Sequences to train on."),
    option("--test-samples", type=COUNT, default=64, show_default=True, metavar="N", group="data", help="Sequences to report with."),
    option("--text-column", metavar="NAME", group="data", help="Column of a table that holds the text."),
    option("--out", type=click.Path(path_type=Path), metavar="DIR", required=True, group="files", help="Directory to write."),
    OVERWRITE,
)
@SHOWN
def train(model: str, method: str, out: Path, quiet: bool, as_json: bool, **given: Any) -> None:
    """Train a small model of CONFIG from random weights, within a budget.

    CONFIG is a config.json of Transformers, a directory with one, demo, or a Hugging Face id; weights beside it are not read. The method's first
    dial that its text does not set is turned as far as the budget allows. An interrupted training goes on where it was.
    """
    loop = settings.read(Loop, {name: str(given.pop(name)) for name in Loop.__dataclass_fields__}, "train")
    Budget.of(size=given["size"], bpw=given["bpw"], params=given["params"])
    if method != _AUTO:
        grammar.check(method, trained=True)
    require_target(given["target"])
    early.check_work(out, given["overwrite"], None if Path(model).is_file() else model, read=[given["data"]])
    from modicum.models.quiet import hushed
    from modicum.train.scratch import train as run

    with hushed(), progress(quiet or as_json) as shown:
        made = run(model, out, method=method, loop=loop, progress=shown, **given)
    if as_json:
        print_json({"out": str(made.out), **made.receipt})
    else:
        _show(made.out, made.receipt)


def _show(out: Path, receipt: Mapping[str, Any]) -> None:
    size, values, work, test = receipt["bytes"], receipt["parameters"], receipt["operations"], receipt["test"]
    if "race" in receipt:
        for each in receipt["race"]["rounds"]:
            click.echo(f"race, {each['updates']} updates: " + "; ".join(f"{name} {_told(lost)}" for name, lost in each["lost"].items()))
        for name, why in receipt["race"]["left out"].items():
            click.echo(f"left out of the race, {name}: {why}")
    click.echo(
        f"{out}: {receipt['method']}, {readable(size['written'])} where dense takes {readable(size['dense'])}; "
        f"{values['stored']:,} of {values['dense']:,} parameters."
    )
    if work:
        click.echo(f"training: {many(work['effective'])} multiply-adds that are not zero, of {many(work['dense'])}.")
    for note in receipt["notes"]:
        click.echo(f"note: {note}")
    click.echo(f"loss per token on {test['sequences']} held-out sequences: {test['loss']:.4f}.")
    for name, each in receipt.get("against", {}).items():
        if isinstance(each, Mapping) and "difference" in each:
            low, high = each["difference"]["interval"]
            click.echo(f"against {name}: {each['loss']:.4f}, this {each['difference']['change']:+.4f} (95 % {low:+.4f} to {high:+.4f}).")


def _told(lost: float | str) -> str:
    return f"{lost:.4f}" if isinstance(lost, float) else lost
