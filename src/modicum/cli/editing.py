"""Commands that change what a model knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from modicum.cli import early
from modicum.cli.generated import Command
from modicum.cli.options import COUNT, OVERWRITE, SEED, SHOWN, Whole, model, option, options, print_json, progress
from modicum.core.recipe import check_recipe

_OUT = option("--out", type=click.Path(path_type=Path), metavar="DIR", required=True, group="files", help="Directory to write.")
_TEXT = options(
    option("--data", metavar="PATH", group="data", help="Text whose behaviour is protected; the shipped texts without it."),
    option("--samples", type=COUNT, default=64, show_default=True, metavar="N", group="data", help="Sequences that are protected."),
    option("--tokens", type=COUNT, default=256, show_default=True, metavar="N", group="data", help="Tokens in a sequence."),
    option("--test-samples", type=COUNT, default=64, show_default=True, metavar="N", group="data", help="Sequences to report with."),
    option("--seed", type=SEED, default=0, show_default=True, metavar="N", group="data", help="Seed of the choice of sequences."),
)


@click.command(cls=Command)
@model()
@options(
    option("--facts", metavar="FILE", required=True, group="data", help="JSON lines of prompts and targets, or zsRE or CounterFact."),
    option("--method", default="ultraedit", show_default=True, metavar="EDITOR", group="method", help="An editor and its settings."),
    option(
        "--batch", type=Whole(0), default=0, show_default=True, metavar="N", group="method", help="Facts at a time, all at once where 0."
    ),
    option("--longest", type=COUNT, default=32, show_default=True, metavar="N", group="data", help="Most tokens of a target."),
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
    check_recipe("edit", given["method"])
    early.check_work(out, given["overwrite"], model, read=[facts, given["data"]])
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


@click.command(cls=Command)
@model()
@options(
    option("--forget", "forgotten", metavar="FILE", required=True, group="data", help="JSON lines of what is to be forgotten."),
    option("--retain", metavar="FILE", required=True, group="data", help="JSON lines of what is to stay."),
    option("--unseen", metavar="FILE", group="data", help="JSON lines that no training saw, to hold the result against."),
    option("--method", default="ssd", show_default=True, metavar="FORGETTER", group="method", help="A forgetter and its settings."),
    option("--reference", metavar="DIR", group="data", help="A model that never saw what is forgotten."),
    option("--goal", type=float, metavar="X", group="method", help="Loss per token of what is unknown, where searches end."),
    option("--tokens", type=COUNT, default=128, show_default=True, metavar="N", group="data", help="Most tokens of a row."),
    option("--no-relapse", is_flag=True, group="method", help="Do not ask what comes back after a fit to 4 bits and after training."),
    option("--allow-overlap", is_flag=True, group="data", help="Rows may stand in both sets."),
    option("--seed", type=SEED, default=0, show_default=True, metavar="N", group="data", help="Seed of all chance."),
    _OUT,
    OVERWRITE,
)
@SHOWN
def forget(model: str, forgotten: str, retain: str, no_relapse: bool, out: Path, quiet: bool, as_json: bool, **given: Any) -> None:
    """Take rows of data out of what MODEL learnt, and write the change as a delta.

    A row is a prompt and its completion (or question and answer), or a text. modicum apply adds the delta, modicum revert takes it back.
    """
    check_recipe("forget", given["method"])
    early.check_work(out, given["overwrite"], model, given["reference"], read=[forgotten, retain, given["unseen"]])
    from modicum.forget.forgetting import forget as run
    from modicum.models.quiet import hushed

    with hushed(), progress(quiet or as_json) as shown:
        made = run(model, forgotten, retain, out, relapse=not no_relapse, progress=shown, **given)
    receipt = made.receipt
    if as_json:
        print_json({"out": str(made.out), **receipt})
        return
    from modicum.core.budget import readable

    click.echo(f"{made.out}: {len(receipt['changed'])} weights changed, {readable(receipt['bytes'])}.")
    for name in ("forget", "retain", "unseen"):
        old, new = (receipt[when][name] for when in ("before", "after"))
        if new["rows"]:
            told = f"loss {old['loss']:.4f} before, {new['loss']:.4f} after; accuracy {old['accuracy']:.1%}, {new['accuracy']:.1%}"
            click.echo(f"{name}: {told} ({new['rows']:,} rows).")
    if "attack" in receipt:
        beside = f", {receipt['attack']['reference']:.3f} with the reference" if "reference" in receipt["attack"] else ""
        click.echo(f"attack: area under the curve {receipt['attack']['after']:.3f}{beside}; 0.5 where nothing can be told.")
    for what, found in receipt.get("comes back", {}).items():
        click.echo(f"after {what}: loss {found['forget']['loss']:.4f} on what was forgotten, {found['retain']['loss']:.4f} on what stays.")


@click.command(cls=Command)
@model()
@click.argument("tasks", metavar="TEXT...", nargs=-1, required=True)
@options(
    option("--method", default="clr", show_default=True, metavar="LEARNER", group="method", help="A learner and its settings."),
    option("--tokens", type=COUNT, default=128, show_default=True, metavar="N", group="data", help="Tokens in a sequence."),
    option("--samples", type=COUNT, default=512, show_default=True, metavar="N", group="data", help="Sequences to learn of each text."),
    option("--test-samples", type=COUNT, default=32, show_default=True, metavar="N", group="data", help="Sequences to report with."),
    option("--text-column", metavar="NAME", group="data", help="Column of a table that holds the text."),
    option("--seed", type=SEED, default=0, show_default=True, metavar="N", group="data", help="Seed of all chance."),
    _OUT,
    OVERWRITE,
)
@SHOWN
def learn(model: str, tasks: tuple[str, ...], out: Path, quiet: bool, as_json: bool, **given: Any) -> None:
    """Let MODEL learn one TEXT after the other without losing those before, and write what it learnt as deltas.

    A TEXT is a file or folder of text. The receipt says how well each is known after every other one.
    """
    check_recipe("learn", given["method"])
    early.check_work(out, given["overwrite"], model, read=tasks)
    from modicum.learn.learning import learn as run
    from modicum.models.quiet import hushed

    with hushed(), progress(quiet or as_json) as shown:
        made = run(model, list(tasks), out, progress=shown, **given)
    receipt = made.receipt
    if as_json:
        print_json({"out": str(made.out), **receipt})
        return
    from modicum.core.budget import readable

    counted = lambda many, word: f"{len(many)} {word}{'s' * (len(many) != 1)}"
    of = f"{counted(receipt['bytes'], 'delta')} of {counted(receipt['tasks'], 'task')}"
    click.echo(f"{made.out}: {of}, {readable(sum(receipt['bytes']))}.")
    for place, name in enumerate(receipt["tasks"]):
        before, learnt, end = (receipt["matrix"][time][place] for time in (0, place + 1, -1))
        kept = "the same bits at the end" if receipt["same bits"][name] else f"{end:.4f} at the end"
        click.echo(f"{name}: {receipt['score']} {before:.4f} before, {learnt:.4f} when learnt, {kept}.")
