"""Run the evidence scripts and write what came out: ``evidence/results.json`` and ``docs/evidence.md``.

python evidence/run.py                  # all; what was stopped goes on where it was
python evidence/run.py S181 S332        # these; the others' results stay
python evidence/run.py --fresh          # all, and nothing that is finished is taken over
python evidence/run.py --page           # run nothing, write docs/evidence.md from results.json
python evidence/run.py --check          # run nothing, exit 1 where docs/evidence.md is not what results.json says
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
PAGE = HERE.parent / "docs" / "evidence.md"
# What the numbers do not say themselves; every claim that does not hold needs one. Written after the run, unlike the claims.
NOTES: dict[str, str] = json.loads((HERE / "notes.json").read_text(encoding="utf-8"))

HEAD = """# Evidence

Written by `make evidence` from `evidence/results.json`; do not edit.

Each script in `evidence/` writes down a system's claim, metric and margin before it runs, then measures the method of that name here
against the claim's baseline, on the demo model where nothing else is said. Method and baseline of one seed see the same calibration windows
and are judged on the same test windows; the seed draws both. A difference is the baseline's log perplexity minus the method's, or what the
claim's metric says: positive is better. A claim *holds* where the mean difference over the seeds exceeds the margin, in standard errors, the
method's files have no more bytes than allowed where they are compared, and every condition of the claim is met. What does not hold stays
here with its numbers, and with the smallest difference that its test could have seen. A small model on little text shows a direction, not the
size of an effect on large ones.
"""


def main() -> int:
    """Run, or check."""
    found = scripts()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", metavar="ID", help=f"which to run: {' '.join(found)}; without any, all")
    parser.add_argument("--check", action="store_true", help="run nothing, exit 1 where the page is stale")
    parser.add_argument("--fresh", action="store_true", help="forget the steps that were finished before")
    parser.add_argument("--page", action="store_true", help="run nothing, write the page")
    arguments = parser.parse_args()
    if unknown := [word for word in arguments.ids if word.upper() not in found]:
        parser.error(f"no script for {', '.join(unknown)}; there are {', '.join(found)}")
    if arguments.check:
        return check(list(known().values()))
    names = [] if arguments.page else list(map(str.upper, arguments.ids or found))
    for name in names if arguments.fresh else []:
        forget(name)
    for name in names:
        row = run(found[name])
        print(f"{name} {'holds' if row['holds'] else 'does not hold'}, {row['seconds']:.0f} s", flush=True)
        write({name: row})
    write({})
    return 0


def scripts() -> dict[str, Path]:
    """The scripts that are there, by id."""
    return {path.stem.partition("_")[0].upper(): path for path in sorted(HERE.glob("s[0-9]*_*.py"))}


def known() -> dict[str, dict[str, Any]]:
    """What the file of results holds now, by id."""
    return {row["id"]: row for row in json.loads(RESULTS.read_text(encoding="utf-8"))} if RESULTS.exists() else {}


def write(new: dict[str, dict[str, Any]]) -> None:
    """Put rows in the results, and write the page: a run that is stopped loses none that was finished, and none that another one wrote meanwhile."""
    results = known() | new
    rows = [results[name] for name in scripts() if name in results]
    RESULTS.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(rows), encoding="utf-8")


def forget(name: str) -> None:
    """Delete the finished steps of a script, and those that it may share."""
    for folder in (HERE.parent / "out" / "evidence").glob("*"):
        if folder.name == name or folder.name.startswith("shared"):
            shutil.rmtree(folder)


def run(script: Path) -> dict[str, Any]:
    """Result of one script, in a process of its own."""
    return json.loads(subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, check=True).stdout)


def check(rows: list[dict[str, Any]]) -> int:
    """Exit code: 1 where the page does not say what the results say."""
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page(rows):
        return 0
    print("evidence: docs/evidence.md must say what evidence/results.json says, does not. Run make evidence.")
    return 1


def page(rows: list[dict[str, Any]]) -> str:
    """The page: a table of all, then a section for each."""
    table = ["| id | system | method | baseline | difference | standard error | seeds | holds |", "|---|---|---|---|---:|---:|---:|---|"]
    table += [_row(row) for row in rows]
    return "\n".join([HEAD, *table, "", _total(rows), "", *map(section, rows)]).rstrip() + "\n"


def _total(rows: list[dict[str, Any]]) -> str:
    """What running all takes."""
    seconds = spent(rows)
    return f"Together they take {seconds:,.0f} seconds of one processor, {seconds / 3600:.1f} hours. What a stopped run has finished is taken over."


def spent(rows: list[dict[str, Any]]) -> float:
    """Seconds of one processor that all rows take, and their scenes, each once."""
    scenes = {name: seconds for row in rows for name, seconds in row.get("scenes", {}).items()}
    return sum(row["seconds"] for row in rows) + sum(scenes.values())


def _row(row: dict[str, Any]) -> str:
    options = [f"`{row[side]['option']}`".replace("|", "\\|") for side in ("measured", "baseline")]
    numbers = [f"{row['difference'][key]:+.4f}" for key in ("mean", "standard_error")]
    cells = [
        row["id"],
        row["system"],
        *options,
        numbers[0],
        numbers[1].lstrip("+"),
        str(len(row["seeds"])),
        "yes" if row["holds"] else "no",
    ]
    return f"| {' | '.join(cells)} |"


def section(row: dict[str, Any]) -> str:
    """One system: its claim, its numbers, their spread, and a note where there is one."""
    difference = row["difference"]
    options = [row["measured"], row["baseline"], *row["others"]]
    spread = ", ".join(f"{value:+.4f}" for value in difference["values"])
    said = [
        f"Metric: {row['metric']}; margin: {row['margin']:g} standard errors. {_windows(row)}, seeds {', '.join(map(str, row['seeds']))}, "
        f"{row['seconds']:.0f} seconds of one processor.",
        f"Difference by seed: {spread}; mean {difference['mean']:+.4f}, standard error {difference['standard_error']:.4f}."
        + (_beside(row) if "kl" in row["measured"] else "")
        + ("" if row["holds"] else f" {_power(row)}"),
        f"**{'It holds here.' if row['holds'] else 'It does not hold here.'}** {NOTES.get(row['id'], '')}".rstrip(),
    ]
    table = _compressed(options) if "kl" in row["measured"] else _searched(options)
    head = [f"## {row['id']}: {row['system']}\n", f"> {row['claim']}\n", said[0]]
    return "\n".join([*head, "", *table, "", said[1], "", *_figures(row), said[2], ""])


def _windows(row: dict[str, Any]) -> str:
    """What was seen of a text; nothing of a row that has no test windows."""
    setting = row["setting"]
    if "data" in row:
        return row["data"]
    if not setting["test_samples"]:
        return "No model is compressed"
    return f"{setting['samples']} calibration and {setting['test_samples']} test windows of {setting['tokens']} tokens"


def _beside(row: dict[str, Any]) -> str:
    """What else tells a method from its baseline."""
    kl = [b - a for a, b in zip(row["measured"]["kl"], row["baseline"]["kl"])]
    original = math.exp(statistics.mean(row["measured"]["log_perplexity_original"]))
    return f" The original's perplexity is {original:.3f}. In mean KL from the original the method is {_closer(kl)}."


def _compressed(options: list[dict[str, Any]]) -> list[str]:
    """A table of what the demo became."""
    return ["| option | perplexity | lowest to highest | mean KL | bytes |", "|---|---:|---:|---:|---:|", *map(_option, options)]


def _searched(options: list[dict[str, Any]]) -> list[str]:
    """A table of what searches spent and found, seed by seed."""
    names = [name for name in options[0] if name != "option"]
    head = [f"| option | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    return [*head, *(f"| `{option['option']}` | {' | '.join(_number(option[name]) for name in names)} |" for option in options)]


def _power(row: dict[str, Any]) -> str:
    """What the test could have seen."""
    return f"A mean difference of {row['margin'] * row['difference']['standard_error']:.4f} would have been seen, nothing smaller."


def _figures(row: dict[str, Any]) -> list[str]:
    """A list of what a claim counts beside its metric, and of its conditions; empty where there are none."""
    if "figures" not in row:
        return []
    said = [f"- {name}: {_number(value)}" for name, value in row["figures"].items()]
    said += [f"- condition, {name}: {'met' if met else 'not met'}" for name, met in row["conditions"].items()]
    return [*said, ""]


def _number(value: Any) -> str:
    """A figure for people."""
    if isinstance(value, dict):
        return "; ".join(f"{name} {_number(found)}" for name, found in value.items())
    if isinstance(value, list):
        return ", ".join(f"[{_number(found)}]" if isinstance(found, list) else _number(found) for found in value)
    return f"`{value}`" if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def _closer(kl: list[float]) -> str:
    """In which seeds a method is closer to the original than the baseline."""
    if min(kl) > 0:
        return "closer in every seed"
    if max(kl) < 0:
        return "farther in every seed"
    return "closer in some, not in every seed" if max(kl) > 0 else "closer in none"


def _option(row: dict[str, Any]) -> str:
    perplexities = [math.exp(value) for value in row["log_perplexity"]]
    middle = math.exp(statistics.mean(row["log_perplexity"]))
    name = row["option"].replace("|", "\\|")
    spread = f"{min(perplexities):.3f} to {max(perplexities):.3f}"
    return f"| `{name}` | {middle:.3f} | {spread} | {statistics.mean(row['kl']):.4f} | {round(statistics.mean(row['bytes'])):,} |"


if __name__ == "__main__":
    sys.exit(main())
