"""Commands that change what a model knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from modicum.cli.generated import Command
from modicum.cli.options import OVERWRITE, SHOWN, model, option, options, print_json, progress

_OUT = option("--out", type=click.Path(path_type=Path), metavar="DIR", required=True, group="files", help="Directory to write.")
_TEXT = options(
    option("--data", metavar="PATH", group="data", help="Text whose behaviour is protected; the shipped texts without it."),
    option("--samples", type=int, default=64, show_default=True, metavar="N", group="data", help="Sequences that are protected."),
    option("--tokens", type=int, default=256, show_default=True, metavar="N", group="data", help="Tokens in a sequence."),
    option("--test-samples", type=int, default=64, show_default=True, metavar="N", group="data", help="Sequences to report with."),
    option("--seed", type=int, default=0, show_default=True, metavar="N", group="data", help="Seed of the choice of sequences."),
)


@click.command(cls=Command)
@model()
@options(
    option("--facts", metavar="FILE", required=True, group="data", help="JSON lines of prompts and targets, or zsRE or CounterFact."),
    option("--method", default="ultraedit", show_default=True, metavar="EDITOR", group="method", help="An editor and its settings."),
    option("--batch", type=int, default=0, show_default=True, metavar="N", group="method", help="Facts at a time, all at once where 0."),
    option("--longest", type=int, default=32, show_default=True, metavar="N", group="data", help="Most tokens of a target."),
    _TEXT,
    _OUT,
    OVERWRITE,
)
@SHOWN
def edit(model: str, facts: str, out: Path, quiet: bool, as_json: bool, **given: Any) -> None:
    """Teach MODEL facts, and write the change as a delta.

    A fact is a prompt and the target that is to follow it, perhaps with its subject, paraphrases and neighbours. modicum apply adds the delta,
    modicum revert takes it back.
    """
    from modicum.edit.editing import edit as run
    from modicum.models.quiet import hushed

    with hushed(), progress(quiet or as_json) as shown:
        made = run(model, facts, out, progress=shown, **given)
    receipt = made.receipt
    if as_json:
        print_json({"out": str(made.out), **receipt})
        return
    from modicum.core.budget import readable

    click.echo(f"{made.out}: {receipt['facts']:,} facts in {len(receipt['changed'])} weights, {readable(receipt['bytes'])}.")
    for name in ("efficacy", "generalisation", "locality"):
        if (found := receipt.get(name, {}).get("after", {})).get("count"):
            low, high = found["interval"]
            before = receipt[name].get("before")
            told = f"{before['share']:.1%} before, " if before else ""
            click.echo(f"{name}: {told}{found['share']:.1%} after (95 % {low:.1%} to {high:.1%}, of {found['count']:,}).")
    if drift := receipt.get("perplexity"):
        low, high = drift["interval"]
        change = f"{drift['change']:+.2%}, 95 % {low:+.2%} to {high:+.2%}"
        click.echo(f"perplexity of other text: {drift['before']:.3f} before, {drift['after']:.3f} after ({change}).")
