"""What the commands show: progress on stderr, results on stdout."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from modicum.core.budget import readable

if TYPE_CHECKING:
    from modicum.core.method import Method

# Lines of a table that is written to a file or a pipe, where no window limits them.
_PIPE_WIDTH = 200


class Bar:
    """One bar for the stage at work, gone when all is done; drawn only where someone watches."""

    def __init__(self, *, visible: bool = True):
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True, disable=not (visible and sys.stderr.isatty()))
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def start(self, stage: str, total: int) -> None:
        """A stage of ``total`` steps begins."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(stage, total=total)

    def step(self) -> None:
        """One step is done."""
        if self._task is not None:
            self._progress.advance(self._task)


@contextmanager
def hushed() -> Iterator[None]:
    """Keep other libraries' bars and notices from mixing with ours; what matters of them reaches the receipt, and downloads still show."""
    from tqdm import tqdm
    from transformers.utils import logging

    verbosity, bars, original = logging.get_verbosity(), logging.is_progress_bar_enabled(), tqdm.__init__

    def silent(self: tqdm, *arguments: Any, **settings: Any) -> None:
        # The plain bar is what quantization libraries draw, whatever is set; the hub's is a subclass.
        original(self, *arguments, **settings | ({"disable": True} if type(self) is tqdm else {}))

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tqdm.__init__ = silent
    try:
        yield
    finally:
        tqdm.__init__ = original
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


# Results of runs


def outcome(receipt: Mapping[str, Any], out: Path) -> None:
    """What ``fit`` made: sizes, quality, coverage, time, and where the report is."""
    sizes, coverage = receipt["bytes"], receipt["coverage"]
    seconds = sum(stage["seconds"] for stage in receipt["stages"].values())
    after = f"{readable(sizes['original'])} → {readable(sizes['actual'])} ({sizes['actual']} bytes, {sizes['bits_per_weight']:.3f} bpw)"
    allowed = [("allowed", f"{readable(sizes['allowed'])} ({sizes['allowed']} bytes)")] if sizes["allowed"] is not None else []
    events = [("events", f"{len(receipt['events'])}, named in the receipt")] if receipt["events"] else []
    _print_rows(
        ("size", after), *allowed, *_quality(receipt["quality"]),
        ("coverage", f"{coverage['share']:.1%} of layer bytes treated, layers as they were: {len(coverage['untreated'])}"),
        ("target", f"{receipt['request']['target']}, reloaded and verified"), *events,
        ("time", f"{seconds:.1f} s"), ("report", str(out / "report.html")),
    )  # fmt: skip


def evaluation(found: Mapping[str, Any]) -> None:
    """What ``evaluate`` measured."""
    judged = f"{found['quality']['sequences']} sequences of {found['data']['source']}"
    against = [("reference", found["reference"])] if found["reference"] else []
    _print_rows(("model", found["model"]), *against, *_quality(found["quality"]), ("judged on", judged))
    for note in found["data"]["notes"]:
        _print_rows(("note", note))


def forecast(value: Mapping[str, Any]) -> None:
    """What a run would do: sizes within reach, work, what would be treated and what not."""
    reach = f"{readable(value['smallest_bytes'])} ({value['smallest_bpw']:.3f} bpw) to {readable(value['largest_bytes'])}"
    fits = {None: [], True: [("budget", "can be met")], False: [("budget", "cannot be met: it is below the smallest")]}[value["fits"]]
    _print_rows(
        ("model", f"{value['model']}: {value['parameters']} parameters, {readable(value['original_bytes'])}"),
        ("target", value["target"]), ("within reach", reach), *fits,
        ("calibration", f"{value['calibration_tokens']} tokens, activations of up to {readable(value['activation_bytes'])}"),
        ("work", f"about {value['work_operations']:.2g} operations"),
    )  # fmt: skip
    _print_table(("treated", "option", "sites", "weights"), _offers(value["sites"]))
    if value["untreated"]:
        _print_table(("stays dense", "layers", "bytes", "the largest"), _reasons(value["untreated"]))


def _quality(quality: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    rows = []
    if quality and "perplexity" in quality:
        before = f"{quality['perplexity_original']:.3f} → " if "perplexity_original" in quality else ""
        rows.append(("perplexity", f"{before}{quality['perplexity']:.3f}"))
    if quality and "mean" in quality:
        rows.append((quality["metric"], f"{quality['mean']:.5f} (95 % interval {quality['low']:.5f} to {quality['high']:.5f})"))
    return rows


def _offers(sites: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Number of sites, and their weights, by kind and option."""
    counts: Counter[tuple[str, str]] = Counter()
    weights: Counter[tuple[str, str]] = Counter()
    for site in sites:
        for option in site["options"]:
            counts[site["kind"], option] += 1
            weights[site["kind"], option] += site["weights"]
    return [(kind, option, str(count), str(weights[kind, option])) for (kind, option), count in counts.items()]


def _reasons(untreated: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Layers left dense, by reason; they come largest first."""
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in untreated:
        found[row["reason"]].append(row)
    return [(reason, str(len(rows)), readable(sum(row["bytes"] for row in rows)), rows[0]["unit"]) for reason, rows in found.items()]


# Methods


def facts(cls: type[Method]) -> dict[str, Any]:
    """What a method says of itself, as a JSON value."""
    paper = dataclasses.asdict(cls.paper) if cls.paper else None
    return {"key": cls.key(), "line": _doc(cls).partition("\n")[0], "needs": sorted(need.value for need in cls.needs), "paper": paper}


def methods(classes: Iterable[type[Method]]) -> None:
    """One line for each method."""
    rows = [facts(cls) for cls in classes]
    table = [(row["key"], row["line"], ", ".join(row["needs"]), str(row["paper"]["year"]) if row["paper"] else "") for row in rows]
    _print_table(("method", "what it does", "needs", "year"), table)


def method(cls: type[Method]) -> None:
    """All a method says of itself: what it does, its settings, what it needs, its known gaps and its paper."""
    _print_line(cls.key())
    _print_line(f"\n{_doc(cls)}\n")
    rows = [(field.name, str(field.default), _bounds(field.metadata), field.metadata.get("help", "")) for field in dataclasses.fields(cls)]
    if rows:
        _print_table(("setting", "default", "allowed", "what it is"), rows)
    _print_rows(("needs", ", ".join(sorted(need.value for need in cls.needs)) or "no data"))
    _print_rows(*((f"gap: {promise}", reason) for promise, reason in cls.known_gaps.items()))
    if cls.paper:
        where = f", arXiv {cls.paper.arxiv}" if cls.paper.arxiv else ""
        _print_rows(("paper", f"{cls.paper.title} ({cls.paper.authors.replace(' and ', '; ') or 'unknown'}, {cls.paper.year}{where})"))


def _doc(cls: type[Method]) -> str:
    return inspect.getdoc(cls) or ""


def _bounds(metadata: Mapping[str, Any]) -> str:
    if metadata.get("choices") is not None:
        return ", ".join(map(str, metadata["choices"]))
    return "{:,} to {:,}".format(*metadata["between"]) if metadata.get("between") else ""


# Printing


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)


def _print_line(line: str) -> None:
    # Never wrapped: a path or a sentence stays whole for who copies it.
    _console().print(Text(line), soft_wrap=True)


def _print_rows(*rows: tuple[str, str]) -> None:
    for name, value in rows:
        _print_line(f"{name + ':':<20} {value}")


def _print_table(names: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    _console().print(table)
