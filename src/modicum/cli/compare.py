"""The command that puts results side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from modicum.cli.generated import Command
from modicum.cli.options import AS_JSON, folder, print_json
from modicum.core.budget import readable
from modicum.core.errors import listed


@click.command(cls=Command)
@folder("directories", metavar="DIR DIR...", nargs=-1)
@AS_JSON
def compare(directories: tuple[str, ...], as_json: bool) -> None:
    """Put results of one original side by side.

    Each DIR is one that fit wrote. Differences in quality are from the first, with an interval of 95 %: paired where all were judged on the same
    sequences.
    """
    from modicum.fit.compared import compare as run
    from modicum.fit.receipts import as_written

    found = run(directories)
    with as_written():
        print_json(found) if as_json else shown(found)


def shown(found: Mapping[str, Any]) -> None:
    """Tables of what is the same and what differs, on stdout."""
    from modicum.cli.printing import print_line, print_rows, print_table

    original, results = found["original"], found["results"]
    print_rows(("original", f"{original['name']}: {original['parameters']} parameters, {readable(original['bytes'])}"))
    names = [result["directory"] for result in results]
    print_table(("", *names), _facts(results))
    print_rows(*((f"against {names[0]}", f"{row['result']}: {_told(row)}") for row in found["quality"]))
    tables = {
        "bytes by kind": _kinds(results),
        f"layers that differ, {len(found['sites'])}": list(_choices(found["sites"])),
        **{f"{what} that differ": [(name, *_words(values)) for name, values in found[what].items()] for what in ("settings", "versions")},
    }
    for title, rows in tables.items():
        if rows:
            print_line("")
            print_table((title, *names), rows)


def _facts(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Rows that every result has: what it was made for, its size and its quality."""
    row = lambda name, told: (name, *map(told, results))
    quality = lambda result: result["quality"] or {}
    rows = [
        row("target", lambda result: result["target"]), row("budget", lambda result: result["budget"] or "none"),
        row("size", lambda result: readable(result["bytes"])), row("bits per weight", lambda result: f"{result['bits_per_weight']:.3f}"),
        row("stored values", lambda result: "" if result["values"] is None else f"{result['values']:,}"),
        row("multiply-adds", lambda result: "" if result["macs"] is None else f"{result['macs']:,}"),
        row("treated", lambda result: f"{result['treated']:.1%}"),
    ]  # fmt: skip
    if any("mean" in quality(result) for result in results):
        rows.append(row("loss", lambda result: _interval(quality(result)) if "mean" in quality(result) else "not judged"))
    if any("perplexity" in quality(result) for result in results):
        rows.append(row("perplexity", lambda result: f"{quality(result)['perplexity']:.3f}" if "perplexity" in quality(result) else ""))
    return [*rows, row("events", lambda result: str(result["events"]))]


def _interval(quality: Mapping[str, Any]) -> str:
    return f"{quality['mean']:.5f} ({quality['low']:.5f} to {quality['high']:.5f}), {quality['metric']}"


def _told(row: Mapping[str, Any]) -> str:
    """What a difference in quality is worth."""
    if "why" in row:
        return f"not compared: {row['why']}"
    how = "sequence by sequence" if row["paired"] else f"unpaired, {'the same' if row['same_sequences'] else 'other'} sequences"
    worth = "beyond chance" if row["differs"] else "no more than chance may make"
    return f"loses {row['difference']:+.3g} (95 % interval {row['low']:+.3g} to {row['high']:+.3g}, {how}): {worth}"


def _kinds(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    names = dict.fromkeys(kind for result in results for kind in result["kinds"])
    return [(kind, *(readable(result["kinds"].get(kind, 0)) for result in results)) for kind in names]


def _choices(sites: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Layers that differ in the same way, with how many there are."""
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for row in sites:
        alike[tuple(row["options"])].append(row["site"])
    for options, names in sorted(alike.items(), key=lambda item: -len(item[1])):
        yield (f"{len(names)}: {listed(names)}", *options)


def _words(values: Sequence[Any]) -> list[str]:
    """Values that differ; of lists what is not in all."""
    if not all(isinstance(value, list) for value in values):
        return ["none" if value is None else str(value) for value in values]
    return [
        ", ".join(map(str, (item for item in value if any(item not in other for other in values)))) or "nothing more" for value in values
    ]
