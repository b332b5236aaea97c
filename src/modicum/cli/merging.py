"""The command that makes one model of several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from modicum.cli import early
from modicum.cli.generated import Command
from modicum.cli.options import COUNT, OVERWRITE, RAM, SEED, SHOWN, flag, model, option, options, print_json, progress
from modicum.core import grammar
from modicum.core.errors import SettingError


@click.command(cls=Command)
@model(metavar="BASE")
@click.argument("models", metavar="MODEL...", nargs=-1, type=click.Path(path_type=Path))
@options(
    option("--method", metavar="OPTION", group="method", help="A method and its settings.", default="ties", show_default=True),
    option("--weights", metavar="X,X", group="method", help="One for each MODEL, by commas; by default what the method says."),
    option("--dtype", metavar="NAME", group="method", help="What is stored: float32, bfloat16 or float16; by default as the base is."),
    option("--seed", type=SEED, default=0, show_default=True, metavar="N", group="method", help="Seed of what is dropped at random."),
    option("--tokenizer", metavar="WHICH", group="method", help="Whose vocabulary, where they differ: base, union, or a MODEL's."),
    flag("--match", "Put each model's units in the order in which they are most alike the base's first.", "method"),
    option("--data", metavar="PATH", group="data", help="Text to verify on; by default the shipped one."),
    option("--samples", type=COUNT, default=32, show_default=True, metavar="N", group="data", help="Sequences to verify on."),
    option("--tokens", type=COUNT, default=256, show_default=True, metavar="N", group="data", help="Tokens in a sequence."),
    option("--evaluate", metavar="WAY", group="method", help="Choose weights on validation data: curve, greedy or evolution."),
    option("--trials", type=COUNT, default=24, show_default=True, metavar="N", group="method", help="Weights that evolution tries."),
    flag("--quality", "Tell the loss of base, inputs and result, with intervals.", "data"),
    flag("--no-verify", "Do not reload and judge what was written.", "data"),
    option("--out", type=click.Path(path_type=Path), metavar="DIR", required=True, group="files", help="Directory to write."),
    OVERWRITE,
    RAM,
)  # fmt: skip
@SHOWN
def merge(
    model: str,
    models: tuple[Path, ...],
    method: str,
    weights: str | None,
    no_verify: bool,
    out: Path,
    quiet: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Make one model of BASE and each MODEL, or of what a plan says.

    BASE may be a plan, FILE.yaml, ours or mergekit's, which says all of it. A MODEL is a directory, or what adapt, delta or PEFT wrote on BASE.
    Tensors are read and written in pieces, so that no model is ever whole in memory; the same command continues what was interrupted.
    """
    shares = None if weights is None else _numbers(weights)
    asked: dict[str, Any] = {"base": model, "models": [str(each) for each in models], "method": method}
    if not models:
        if not model.endswith((".yaml", ".yml", ".json")):
            raise SettingError(f"{model}: a MODEL must be merged into it, none is named. Name one, or give a plan: FILE.yaml.")
        asked = {"plan": model}
    grammar.read_merge(method, grammar.known())
    sources, plans = ((model, *map(str, models)), ()) if models else ((), (model,))
    early.check_work(out, given["overwrite"], *sources, read=[*plans, given["data"]])
    from modicum.merging.merge import merge as run
    from modicum.models.quiet import hushed

    with hushed(), progress(quiet or as_json) as shown:
        made = run(**asked, out=out, weights=shares, verify=not no_verify, progress=shown, **given)
    receipt = made.receipt
    if as_json:
        print_json({"out": str(made.out), **receipt})
    else:
        _tell(made.out, receipt)


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise SettingError(f"--weights: must be numbers by commas, such as 0.5,0.5, got {text!r}.") from None


def _tell(out: Path | None, receipt: dict[str, Any]) -> None:
    seconds = receipt["stages"]["merging"]["seconds"]
    count = len(receipt["models"])
    merged = f"{count} model{'s' * (count > 1)} merged by {receipt['method']}"
    click.echo(f"{out}: {merged}, {len(receipt['tensors'])} tensors in {seconds:.1f} s.")
    for each in receipt["models"]:
        click.echo(f"weight {each['weight']:g}: {each['model']} (sha256 {each['sha256'][:12]}).")
    if made := receipt.get("mixture"):
        click.echo(f"a mixture of {len(made['experts'])} experts, {made['active']} for each token, gates: {made['gate']}.")
        for each in made["experts"]:
            click.echo(f"expert: {each['model']} (sha256 {each['sha256'][:12]}).")
    for each in receipt.get("matched", ()):
        click.echo(f"matched {each['model']}: {each['moved']} of {each['units']} units stand elsewhere.")
    if found := receipt.get("evaluated"):
        chosen = ", ".join(f"{weight:g}" for weight in found["weights"])
        click.echo(f"weights {chosen} chosen on validation data of {len(found['tried'])} by {found['way']}.")
    perplexity = receipt.get("verified", {}).get("perplexity")
    if perplexity:
        click.echo("perplexity on held-out text: " + ", ".join(f"{label} {value:.4g}" for label, value in perplexity.items()) + ".")
    for row in receipt.get("quality", ()):
        low, high = row["interval"]
        click.echo(f"loss per token of {row['model']}: {row['loss']:.4f} (95 % {low:.4f} to {high:.4f}).")
    for event in receipt["events"]:
        click.echo(f"note: {event}.")
