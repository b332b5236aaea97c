"""Commands that change a model: train beside it, apply and take back, tell two apart, and look at a change."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from modicum.cli import early
from modicum.cli.generated import Command, from_settings
from modicum.cli.options import COUNT, OVERWRITE, SHOWN, folder, model, option, options, print_json, progress
from modicum.core import grammar, settings
from modicum.core.budget import Budget, readable
from modicum.core.errors import SettingError
from modicum.train.settings import Loop

# What a change is written as.
FORMATS = ("modicum", "peft", "gguf")
_OUT = option("--out", type=click.Path(path_type=Path), metavar="DIR", required=True, group="files", help="Directory to write.")


@click.command(cls=Command)
@model()
@options(
    option(
        "--method",
        default="lora rank=8",
        show_default=True,
        metavar="OPTION",
        group="method",
        help="What is trained: a method and its settings, or auto, which divides --params or --size over the weights.",
    ),
    option("--against", metavar="OPTION", group="method", help="Train this too, to be told what it reaches: full, say."),
    option("--size", metavar="SIZE", group="budget", help="Bytes of the delta's files at most, such as 200kB."),
    option("--params", metavar="SHARE", group="budget", help="Trained numbers at most, a share of the model's such as 1%."),
    option("--memory", metavar="SIZE", group="budget", help="Memory of this process at most while it trains, such as 4GB."),
    *from_settings(Loop),
    option(
        "--data",
        metavar="PATH",
        group="data",
        help="Text, or a table of prompts with answers or with chosen and rejected ones, or of texts with labels; the shipped texts without it.",
    ),
    option("--tokens", type=COUNT, default=256, show_default=True, metavar="N", group="data", help="Tokens in a sequence."),
    option("--samples", type=COUNT, default=512, show_default=True, metavar="N", group="data", help="Sequences to train on, of a text."),
    option(
        "--test-samples", type=COUNT, default=64, show_default=True, metavar="N", group="data", help="Sequences to report with, of a text."
    ),
    option("--text-column", metavar="NAME", group="data", help="Column of a table that holds the text."),
    _OUT,
    OVERWRITE,
)
@SHOWN
def adapt(model: str, method: str, out: Path, quiet: bool, as_json: bool, **given: Any) -> None:
    """Train a few numbers beside MODEL, and write them as a delta.

    Of prompts with answers, or conversations, the answers alone are learnt; a model that classifies sequences learns a table of text and label. An
    interrupted training goes on where it was.
    """
    loop = settings.read(Loop, {name: str(given.pop(name)) for name in Loop.__dataclass_fields__}, "adapt")
    for text in (method, *filter(None, [given["against"]])):
        if text != "auto":
            grammar.check(text, trained=True)
    Budget.of(**{name: given[name] for name in ("size", "params", "memory")})
    early.check_work(out, given["overwrite"], model, read=[given["data"]])
    from modicum.models.quiet import hushed
    from modicum.sweep.ranks import joined
    from modicum.train.adapt import adapt as run

    with hushed(), joined() as ranks, progress(quiet or as_json or not ranks.leads) as shown:
        made = run(model, out, method=method, loop=loop, progress=shown, ranks=ranks, **given)
    if not ranks.leads:
        return
    receipt = made.receipt
    if as_json:
        print_json({"out": str(made.out), **receipt})
        return
    test = receipt["test"]
    low, high = test["interval"]
    held = {"pair": "pairs", "text": "texts"}.get(receipt["per"], "sequences")
    click.echo(f"{made.out}: {receipt['trained']:,} trained numbers beside {receipt['parameters']:,}, {readable(receipt['bytes'])}.")
    click.echo(
        f"loss per {receipt['per']} on {test['sequences']} held-out {held}: {test['before']:.4f} before, {test['after']:.4f} after "
        f"({test['change']:+.4f}, 95 % {low:+.4f} to {high:+.4f})."
    )
    if (other := receipt["against"]) is not None:
        test = other["test"]
        low, high = test["interval"]
        click.echo(
            f"{other['method']}, of {other['trained']:,} numbers, has {test['before']:.4f}: {method} is apart by {test['change']:+.4f} "
            f"(95 % {low:+.4f} to {high:+.4f})."
        )


@click.command(cls=Command)
@model(metavar="BASE")
@click.argument("deltas", metavar="DELTA...", nargs=-1, required=True, type=click.Path(path_type=Path))
@options(
    option("--scale", type=float, default=1.0, show_default=True, metavar="X", group="method", help="Times what the deltas change."),
    option(
        "--dequantize", is_flag=True, group="method", help="Store a weight dense where its target cannot add to codes (compressed-tensors)."
    ),
    option("--no-revert", is_flag=True, group="files", help="Do not keep what is displaced, which gives back the base."),
    _OUT,
    OVERWRITE,
)
@SHOWN
def apply(
    model: str, deltas: tuple[Path, ...], scale: float, dequantize: bool, no_revert: bool, out: Path, overwrite: bool, quiet: bool, as_json: bool
) -> None:  # fmt: skip
    """Write the checkpoint BASE with each DELTA applied.

    A DELTA is one of adapt or delta, or the folder of a PEFT adapter. Their changes are added, so that none meets another. modicum revert takes
    it back to the byte. Of a compressed BASE codes and masks stay as they are, and the change is laid over them.
    """
    early.require_deltas(*deltas)
    early.check_work(out, overwrite, model)
    from modicum.core.output import require_free
    from modicum.delta.applying import apply as dense
    from modicum.delta.opened import opened
    from modicum.fit import over
    from modicum.models.located import locate

    if not math.isfinite(scale):
        raise SettingError(f"--scale: must be finite, is {scale}.")
    require_free(out, [locate(model), *deltas], overwrite)
    read = [opened(path, model) for path in deltas]
    if over.is_compressed(locate(model)):
        made = over.apply(model, read, out, scale=scale, overwrite=overwrite, dequantize=dequantize, reversible=not no_revert)
    else:
        made = dense(model, read, out, scale=scale, overwrite=overwrite, reversible=not no_revert)
    if as_json:
        print_json({"out": str(made.out), "changed": list(made.changed), "displaced": made.displaced, "notes": list(made.notes)})
    else:
        kept = f"{readable(made.displaced)} are kept to take it back" if made.displaced else "nothing is kept to take it back"
        click.echo(f"{made.out}: {len(made.changed)} tensors changed; {kept}.")
        for note in made.notes:
            click.echo(f"note: {note}.")


@click.command(cls=Command)
@folder("directory", metavar="DIR")
@options(_OUT, OVERWRITE)
@SHOWN
def revert(directory: str, out: Path, overwrite: bool, quiet: bool, as_json: bool) -> None:
    """Write the base of what apply wrote to DIR, with the very bytes that it had."""
    early.require_results(directory)
    early.check_work(out, overwrite)
    from modicum.delta.applying import revert as dense
    from modicum.fit import over

    revert = over.revert if over.is_over(Path(directory)) else dense
    made = revert(directory, out, overwrite=overwrite)
    if as_json:
        print_json({"out": str(made)})
    else:
        click.echo(f"{made}: the base, as it was.")


@click.command(cls=Command)
@folder("tuned", metavar="FINE_TUNED")
@options(
    option("--base", metavar="MODEL", required=True, group="files", help="The model that it was tuned from."),
    option("--rank", type=COUNT, metavar="N", group="method", help="Tell each matrix's change as a product of this rank."),
    option(
        "--format",
        type=click.Choice(FORMATS),
        default=FORMATS[0],
        show_default=True,
        group="files",
        help="What is written: a delta, or an adapter that PEFT loads, or llama.cpp (gguf), of products of thin matrices alone.",
    ),
    _OUT,
    OVERWRITE,
)
@SHOWN
def delta(tuned: str, base: str, rank: int | None, format: str, out: Path, overwrite: bool, quiet: bool, as_json: bool) -> None:
    """Write what FINE_TUNED has otherwise than its base, as a delta.

    FINE_TUNED is a model, or a delta or an adapter of PEFT that is to be written in another format.
    """
    early.check_work(out, overwrite, tuned, base)
    from modicum.core.output import require_free, writing
    from modicum.export.adapters import changed_from, write

    read = [Path(name) for name in (tuned, base)]
    require_free(out, read, overwrite)
    made = changed_from(tuned, base, rank)
    with writing(out, read, overwrite) as folder:
        write(made, folder, base, format)
    if as_json:
        print_json({"out": str(out), "format": format, "changed": sorted(made.forms), "bytes": made.nbytes})
    else:
        click.echo(f"{out}: {len(made.forms)} weights changed, {readable(made.nbytes)}.")


@click.command(cls=Command)
@folder("path", metavar="DELTA")
@options(
    option("--base", metavar="MODEL", group="files", help="The model it stands on, for the sizes of what it changes."),
    option(
        "--picture",
        type=click.Path(path_type=Path),
        metavar="FILE.svg",
        group="files",
        help="Draw sizes and spectra of what it changes, which needs its base.",
    ),
    OVERWRITE,
)
@SHOWN
def show(path: str, base: str | None, picture: Path | None, overwrite: bool, quiet: bool, as_json: bool) -> None:
    """Say what is in DELTA, weight by weight; with its base, how much of each it changes."""
    if picture is not None and base is None:
        raise SettingError("--picture: must have the base of the change, has none. Pass --base MODEL.")
    early.require_deltas(path)
    early.check_places(base)
    from modicum.cli.printing import print_table
    from modicum.core.output import require_new_file, write_file
    from modicum.delta.opened import described, opened

    if picture is not None:
        require_new_file(picture, overwrite, "--picture")
    rows = described(opened(Path(path), base), base)
    if picture is not None:
        from modicum.receipt.spectrum import spectrum

        write_file(picture, spectrum(rows), "--picture")
    if as_json:
        print_json(rows)
        return
    names = ["weight", "form", "bytes", *(["norm", "of the weight", "half of it in"] if base else [])]
    told = lambda row: (row["weight"], row["form"], f"{row['bytes']:,}")
    sizes = lambda row: (
        (f"{row['norm']:.4g}", f"{row['relative']:.2%}", f"{row['half']} directions") if base and "norm" in row else ("",) * 3 * bool(base)
    )
    print_table(names, ((*told(row), *sizes(row)) for row in rows))
