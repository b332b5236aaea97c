"""The commands. Nothing heavy is imported before a command runs, so that help answers at once."""

from __future__ import annotations

import dataclasses
import errno
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modicum import __version__
from modicum.cli import early
from modicum.cli.changing import adapt, apply, delta, revert, show
from modicum.cli.clean import clean
from modicum.cli.codes import CODES, INTERRUPTED, REFUSED
from modicum.cli.compare import compare
from modicum.cli.completion import completion
from modicum.cli.editing import edit, forget, learn
from modicum.cli.env import env
from modicum.cli.generated import Command
from modicum.cli.healing import heal
from modicum.cli.importing import import_file
from modicum.cli.merging import merge
from modicum.cli.methods import catalogue, cite, explain
from modicum.cli.options import (
    COMPUTE,
    COUNT,
    FITTING,
    JUDGED,
    MEASURING,
    OPENING,
    OVERWRITE,
    RAM,
    SEED,
    SHOWN,
    TEXT_COLUMN,
    TRUST,
    Whole,
    flag,
    folder,
    given,
    model,
    option,
    options,
    print_json,
    progress,
)
from modicum.cli.training import train
from modicum.cli.written import densify, push, report
from modicum.core.errors import ModicumError, SettingError
from modicum.measure.meta import require_measurement

if TYPE_CHECKING:
    from modicum.core.plan import Plan
    from modicum.models.model import Model
    from modicum.sweep.ranks import Ranks

# Commands that write OUT.partial and continue from it.
_CONTINUING = ("fit", "measure", "export", "adapt", "train", "merge")


def _out(help: str = "Directory to write.", metavar: str = "DIR", required: bool = True) -> Callable:
    return option("--out", type=click.Path(path_type=Path), metavar=metavar, required=required, group="files", help=help)


class _Sentences(click.Group):
    """Says what went wrong in one sentence where a caller caused it; a traceback is left to what is a bug."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModicumError as error:
            _leave(ctx, str(error), REFUSED)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            _leave(ctx, f"{error.filename or 'output'}: no space is left on the device. Free some and run the same command again.", REFUSED)
        except KeyboardInterrupt:
            continues = " The same command continues from what is done." if ctx.invoked_subcommand in _CONTINUING else ""
            _leave(ctx, f"interrupted.{continues}", INTERRUPTED)


def _leave(ctx: click.Context, sentence: str, code: int) -> None:
    click.echo(f"modicum: {' '.join(sentence.split())}", err=True)
    ctx.exit(code)


# What a script may rely on.
_CODES = f"Exit codes: {', '.join(f'{code} {word}' for code, word, _ in CODES)}."


@click.group(cls=_Sentences, epilog=_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="modicum")
def main() -> None:
    """Give neural networks as few parameters as the job needs.

    Bring a model and a budget; get the best model that fits, in files that runtimes load, with a receipt.
    """


@main.command(cls=Command)
@model(required=False)
@options(
    FITTING,
    option("--from", "measured", metavar="DIR", group="data", help="A directory that measure wrote: nothing is measured again."),
    _out("Directory to write; by default out/<model name>.", required=False),
)
@SHOWN
def fit(model: str | None, measured: str | None, out: Path | None, quiet: bool, as_json: bool, **settings: Any) -> None:
    """Give the best MODEL that fits a budget.

    MODEL is demo, a directory, or a Hugging Face id; with --from it may be left out. Several budgets hold together: --size, --bpw, --params,
    --loss, --memory, --speed and --latency. Instead of budgets one of --method and --plan.
    """
    if model is None and measured is None:
        raise click.UsageError("Missing argument 'MODEL', or --from DIR.")
    early.check_fit(model, measured, out, given(settings))
    from modicum.cli import show

    wanted = given(settings) | ({"measured": measured} if measured is not None else {})
    from modicum.core.memory import uncollected

    with uncollected() if settings["dry_run"] else nullcontext():
        receipt, written = _run(model, out or Path("out") / early.default_name(model, measured), quiet, wanted)
    if as_json:
        print_json(receipt)
    elif settings["dry_run"]:
        show.forecast(receipt)
    else:
        show.outcome(receipt, written)


@main.command(cls=Command)
@model()
@options(
    MEASURING,
    _out(),
)
@SHOWN
def measure(model: str, out: Path, quiet: bool, as_json: bool, **settings: Any) -> None:
    """Measure MODEL once, for any budget.

    MODEL is demo, a directory, or a Hugging Face id. Afterwards modicum frontier DIR draws what every size costs, and modicum fit --from DIR
    chooses within any budget, for any measured target, without measuring again.
    """
    early.check_measure(model, out, given(settings))
    from modicum.cli import show
    from modicum.measure import measure as run
    from modicum.models.quiet import hushed
    from modicum.sweep.ranks import joined

    with hushed(), joined() as ranks, progress(quiet or not ranks.leads) as shown:
        arguments: dict[str, Any] = {**given(settings), "out": out, "progress": shown, "ranks": ranks}
        found = run(model, **arguments)
    _only_first(ranks)
    print_json(show.measurement_facts(found)) if as_json else show.measurement(found)


@main.command(cls=Command)
@folder("directory", metavar="DIR")
@options(
    option("--target", metavar="NAME", group="method", help="Only this target; by default all that were measured."),
    option("--points", type=COUNT, default=40, show_default=True, metavar="N", group="budget", help="Sizes to choose at."),
    option(
        "--measured",
        "measured_at",
        type=Whole(0),
        default=6,
        show_default=True,
        metavar="N",
        group="budget",
        help="Sizes at which the choice is made and measured.",
    ),
    RAM,
)
@OPENING
@SHOWN
def frontier(directory: str, quiet: bool, as_json: bool, **settings: Any) -> None:
    """Draw what every size of a measured model costs.

    DIR is a directory that measure wrote. Into it go frontier.svg, frontier.html and frontier.json.
    """
    require_measurement(Path(directory))
    from modicum.cli import show
    from modicum.models.quiet import hushed
    from modicum.receipt import frontier as run

    with hushed(), progress(quiet) as shown:
        arguments: dict[str, Any] = {**given(settings), "progress": shown}
        found = run(directory, **arguments)
    print_json(found) if as_json else show.frontier(found, Path(directory))


@main.command("eval", cls=Command)
@folder("directory", metavar="DIR")
@options(
    option("--data", metavar="PATH", group="data", help="What to judge with, as for fit; by default the test text shipped with modicum."),
    TEXT_COLUMN,
    option("--reference", metavar="DIR", group="data", help="The original, to measure the divergence from."),
    option("--samples", type=COUNT, default=64, show_default=True, metavar="N", group="data", help="Sequences to judge on."),
    option("--tokens", type=COUNT, default=512, show_default=True, metavar="N", group="data", help="Tokens per sequence."),
    option("--seed", type=SEED, default=0, show_default=True, metavar="N", group="data", help="Seed of the choice of sequences."),
    option(
        "--lm-eval",
        metavar="TASKS",
        group="data",
        help="Tasks of lm-evaluation-harness to run too: names, or folders of task files (which may run code of their own), by commas.",
    ),
    COMPUTE,
    JUDGED,
)
@SHOWN
def judge(directory: str, quiet: bool, as_json: bool, **settings: Any) -> None:
    """Measure the quality of the model in DIR.

    DIR is a directory that fit wrote, one that Transformers loads, or demo.
    """
    early.check_places(directory, settings["data"])
    early.check_harness(settings["lm_eval"])
    from modicum.cli import show
    from modicum.models.quiet import hushed
    from modicum.receipt import evaluate

    with hushed(), progress(quiet) as shown:
        found = evaluate(directory, progress=shown, **settings)
    print_json(found) if as_json else show.evaluation(found)


@main.command(cls=Command)
@folder("directory", metavar="DIR")
@options(
    option("--target", required=True, metavar="NAME", group="method", help="transformers, modicum, vllm or gguf."),
    flag("--dense", "Write whole what codes in DIR cannot be written as.", "method"),
    _out(metavar="DIR2"),
)
@TRUST
@SHOWN
def export(directory: str, target: str, out: Path, dense: bool, quiet: bool, as_json: bool, **settings: Any) -> None:
    """Write what fit wrote in DIR for another target.

    The plan in DIR is carried out again on the original model, with the data and seed of its receipt. Codes of our own container become the same
    whole numbers for transformers, nothing is made anew.
    """
    before, plan = early.check_export(Path(directory), target, out, settings["overwrite"])
    from modicum.cli import show
    from modicum.export.source import open_source

    trust = {name: settings[name] for name in ("allow_pickle", "trust_remote_code", "allow_quantized_source")}
    model = open_source(before["model"]["name"], **trust)
    settings |= {"seed": before["seed"], **_data(before)}
    if target == "transformers" and _holds_codes(Path(directory)):
        receipt, written = _expand(Path(directory), model, plan, out, dense, quiet, settings)
    else:
        receipt, written = _run(
            model, out, quiet, settings | _prepared(before) | {"plan": _for_target(plan, target, model), "target": target}
        )
    if receipt["data"]["hashes"] != before["data"]["hashes"]:
        click.echo("modicum: the calibration sequences differ from those of the first run.", err=True)
    print_json(receipt) if as_json else show.outcome(receipt, written)


@main.command(cls=Command)
@model()
@options(
    option("--to", "corpus", required=True, metavar="TEXT", group="data", help="What the model will work on: text, a table, or a folder."),
    TEXT_COLUMN,
    _out(),
    option("--size", type=COUNT, metavar="N", group="method", help="The most tokens to keep; the most frequent stay."),
    option(
        "--multiple",
        type=COUNT,
        default=1,
        show_default=True,
        metavar="N",
        group="method",
        help="Pad the vocabulary with zeros to a multiple of N.",
    ),
    OVERWRITE,
)
@SHOWN
def trim(model: str, corpus: str, out: Path, quiet: bool, as_json: bool, **settings: Any) -> None:
    """Write MODEL with the part of its vocabulary that a text uses.

    MODEL is demo, a directory, or a Hugging Face id. The logits of the tokens that stay are those of the original.
    """
    early.check_work(out, settings["overwrite"], model, read=[corpus])
    from modicum.core.budget import readable
    from modicum.models.quiet import hushed
    from modicum.vocabulary import trim as run

    with hushed(), progress(quiet) as shown:
        made = run(model, corpus, out, progress=shown, **settings)
    if as_json:
        print_json(dataclasses.asdict(made) | {"out": str(made.out)})
        return
    saved = f"{made.kept} of {made.before} tokens, {readable(made.saved)} smaller"
    click.echo(f"{made.out}: {saved}; {made.changed:.2%} of the text's tokens changed.")
    for name in made.left_out:
        click.echo(f"left out, since it holds the old vocabulary or an earlier receipt: {name}")


_TOLD = (import_file, catalogue, explain, cite, env, compare, report, densify, push, clean, completion)
for _told in (train, adapt, apply, revert, delta, show, heal, merge, edit, forget, learn, *_TOLD):
    main.add_command(_told)


def _run(model: str | Model | None, out: Path, quiet: bool, settings: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    from modicum.fit import fit as run
    from modicum.models.quiet import hushed
    from modicum.receipt.report import report as page
    from modicum.sweep.ranks import joined

    with hushed(), joined() as ranks, progress(quiet or not ranks.leads) as shown:
        arguments: dict[str, Any] = {**settings, "out": out, "progress": shown, "ranks": ranks, "page": page}
        result = run(model, **arguments)
    _only_first(ranks)
    return result.receipt, result.out


def _expand(
    directory: Path, model: Model, plan: Plan, out: Path, dense: bool, quiet: bool, settings: dict[str, Any]
) -> tuple[dict[str, Any], Path]:
    from modicum.fit.expand import expanded
    from modicum.models.quiet import hushed
    from modicum.receipt.report import report as page

    with hushed(), progress(quiet) as shown:
        result = expanded(directory, model, plan, out=out, dense=dense, progress=shown, page=page, **settings)
    return result.receipt, result.out


def _only_first(ranks: Ranks) -> None:
    """End all ranks but the first, which says what was made."""
    if not ranks.leads:
        click.get_current_context().exit()


def _holds_codes(directory: Path) -> bool:
    from modicum.fit.expand import holds_codes

    return holds_codes(directory)


def _data(receipt: dict[str, Any]) -> dict[str, Any]:
    """Settings of ``fit`` that give the data of an earlier run, as far as its receipt tells."""
    source = receipt["data"]["source"]
    if source == "batches":
        raise SettingError("export: the first run's data must be text, were batches from Python. Call modicum.fit with plan= and data=.")
    known = {
        name: receipt["request"][name]
        for name in ("samples", "tokens", "micro_batch", "test_samples", "text_column")
        if name in receipt["request"]
    }
    return known | {"data": None if source == "shipped" else source}


def _prepared(receipt: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run of ``fit`` did to the model before it chose, as far as its receipt tells."""
    return {name: value for name in ("rotate", "smooth", "importance", "starved") if (value := receipt["request"].get(name)) is not None}


def _for_target(plan: Plan, target: str, model: Model) -> Plan:
    """The plan for another target: our container binds no units together, so what was one choice there becomes one per unit."""
    from modicum.core.plan import Plan

    if target != "modicum":
        return Plan(target, plan.options, plan.cuts, plan.notes)
    options = {unit: option for site, option in plan.options.items() for unit in _units(site, model)}
    return Plan(target, options, plan.cuts, plan.notes)


def _units(site: str, model: Model) -> list[str]:
    if site == "experts":
        return [unit.name for unit in model.units.values() if unit.kind == "expert"]
    if fused := re.fullmatch(r"(.*)\.\[(.*)\]", site):
        modules = {f"{fused[1]}.{tail}" for tail in fused[2].split(",")}
        return [unit.name for unit in model.units.values() if unit.module in modules]
    return [site]
