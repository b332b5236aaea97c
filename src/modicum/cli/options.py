"""Options that several commands share, and what is read off them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from modicum.cli.progress import Progress


def options(*added: Callable) -> Callable:
    """Several options as one decorator, in the order in which they stand."""

    def add(command: Callable) -> Callable:
        for option in reversed(added):
            command = option(command)
        return command

    return add


def flag(name: str, help: str) -> Callable:
    """An option without a value."""
    return click.option(name, is_flag=True, help=help)


AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, and nothing else.")
QUIET = flag("--quiet", "Show no progress; without it stderr has a bar, or where it is no terminal a line per stage and minute.")
OPENING = options(
    flag("--allow-pickle", "Read pickled weights where there are no safetensors."),
    flag("--trust-remote-code", "Let the model's directory run code of its own."),
)
TRUST = options(
    flag("--overwrite", "Replace the output directory where it exists."),
    OPENING,
    flag("--allow-fallback", "Accept solves that needed more damping than asked for; the receipt names each."),
)
JUDGED = options(
    click.option("--output", metavar="NAMES", help="What of the output is judged, by name or place; by default all of the model's answer."),
    click.option("--classes", metavar="AXIS", help="Axis of the classes, independent, or none; by default what name and shape tell."),
)
TEXT_COLUMN = click.option(
    "--text-column",
    metavar="NAME",
    help="Column of the text in a table: its name, or its number where there is no header; by default found by its name.",
)
COMPUTE = click.option(
    "--compute",
    default="auto",
    show_default=True,
    metavar="DTYPE",
    help="Dtype to compute in: float32, bfloat16, or auto: for weights of half precision whichever this processor is faster in.",
)
# What measuring and fitting have in common.
MEASURING = options(
    click.option("--target", metavar="NAME", help="transformers or modicum; by default the one that suits the model, to measure all."),
    click.option(
        "--data", metavar="PATH",
        help="What to calibrate and judge with: text, CSV, TSV, JSON lines, JSON, Parquet, or a folder of them; a folder of pictures or "
        "recordings for a model that takes those, with metadata.csv (file_name, text) where it reads text too. By default the text shipped "
        "with modicum.",
    ),
    TEXT_COLUMN,
    click.option("--samples", default=128, show_default=True, help="Sequences to calibrate on."),
    click.option("--tokens", default=512, show_default=True, help="Tokens per sequence."),
    click.option("--micro-batch", default=8, show_default=True, help="Sequences run at once."),
    click.option("--test-samples", default=64, show_default=True, help="Sequences to judge on; half as many to choose by."),
    JUDGED,
    click.option("--gradient-samples", default=16, show_default=True, help="Sequences to take gradients on."),
    click.option("--menu", metavar="OPTIONS", help="Options to choose from, by commas, such as int2,int3,int4."),
    click.option("--group", type=int, metavar="N", help="Columns per scale for the menu's intN, 0: a row; by default what suits each layer."),
    click.option("--ram", metavar="SIZE", help="Memory to stay within, such as 4GB."),
    click.option("--seed", default=0, show_default=True, help="Seed of every choice by chance."),
    click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto or cpu; cuda or cuda:N for a GPU."),
    COMPUTE,
    click.option("--keep", multiple=True, metavar="PATTERN", help="Leave matching layers as they are; may be repeated."),
    click.option(
        "--harm", default="covariance", show_default=True, metavar="NAME",
        help="How harm is predicted: covariance, fisher, hessian, trace or error.",
    ),
    click.option(
        "--search-time", type=float, metavar="SECONDS",
        help="Time to judge plans by real divergences, to learn what harms are worth and to improve the choice; by default 60, of "
        "fit --from 0: the choice is there in seconds.",
    ),
    flag("--curvature", "Also measure Hessian traces and top eigenvalues, with the model in memory."),
)  # fmt: skip


def given(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that stand on the command line; what the others are by default, the library says."""
    context = click.get_current_context()
    return {name: value for name, value in settings.items() if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}


def print_json(value: Any) -> None:
    """A JSON value on stdout."""
    click.echo(json.dumps(value, indent=1))


def progress(quiet: bool) -> Progress:
    """Progress that suits where stderr goes."""
    from modicum.cli.progress import progress

    return progress(quiet=quiet)
