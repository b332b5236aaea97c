"""Run the benchmarks and write ``docs/benchmarks.md`` from what they measured.

python bench/run.py [start] [compute] [methods] [own_text] [allocators] [uneven] [costs] [solver] [codes]
[other_codes] [few_bits] [states] [below_four] [activations]
    [learned] [ggml] [sweep] [ranks] [side_by_side] [llama_cpp] [adapters] [healing] [merge] [budgets]
    [choosing_methods] [rates] [small] [trained_bytes] [edit] [facts] [forget] [learn] [real] [--docs]
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BAR = "\\|"  # what parts no cells
sys.path.insert(0, str(ROOT))
PARTS = (
    "start",
    "compute",
    "methods",
    "own_text",
    "allocators",
    "exhaustive",
    "uneven",
    "costs",
    "solver",
    "codes",
    "other_codes",
    "few_bits",
    "states",
    "below_four",
    "activations",
    "learned",
    "ggml",
    "sweep",
    "ranks",
    "large",
    "side_by_side",
    "llama_cpp",
    "adapters",
    "healing",
    "merge",
    "budgets",
    "choosing_methods",
    "rates",
    "small",
    "trained_bytes",
    "edit",
    "facts",
    "forget",
    "learn",
    "real",
)


def main() -> None:
    words = sys.argv[1:]
    if strange := set(words) - {*PARTS, "--docs"}:
        raise SystemExit(f"bench: no such part: {', '.join(sorted(strange))}. There are {', '.join(PARTS)}, and --docs for the page alone.")
    chosen = [word for word in words if word in PARTS] or ([] if "--docs" in words else PARTS)
    for part in chosen:
        importlib.import_module(f"bench.{part}").main()
    (ROOT / "docs" / "benchmarks.md").write_text(document(), encoding="utf-8")
    importlib.import_module("bench.picture").draw()


def document() -> str:
    import torch

    lines = [
        "# Benchmarks",
        "",
        "Measured by `make bench` (`python bench/run.py NAME` for one); generated from `bench/aims.md` and `bench/results`, do not edit.",
        "",
    ]
    machine = f"{platform.processor() or platform.machine()}, torch {torch.__version__}"
    lines += [f"{machine}. Seconds are of a shared, noisy machine: read ratios."]
    lines += ["", (ROOT / "bench" / "aims.md").read_text(encoding="utf-8").rstrip()]
    for path in sorted((ROOT / "bench" / "results").glob("*.json")):
        table = json.loads(path.read_text(encoding="utf-8"))
        lines += ["", f"## {table['title']}", "", f"| {' | '.join(table['head'])} |", f"|{'---|' * len(table['head'])}"]
        lines += [f"| {' | '.join(cell.replace('|', BAR) for cell in row)} |" for row in table["rows"]]
        if table["note"]:
            lines += ["", table["note"]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
