"""What the benchmarks share: the demo, its data, and a table printed and kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
SAMPLES, TOKENS, TEST = 32, 512, 64


def interval(quality: dict[str, Any]) -> str:
    return f"{quality['mean']:.5f} [{quality['low']:.5f}, {quality['high']:.5f}]"


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> None:
    """Print a table and keep it under ``bench/results`` as JSON, from which ``docs/benchmarks.md`` is made."""
    lines = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(head), *lines]) for i in range(len(head))]
    print(f"\n{title}")
    for row in [list(head), *lines]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    RESULTS.mkdir(exist_ok=True)
    name = title.split(":")[0].lower().replace(" ", "_").replace(".", "_")
    body = {"title": title, "head": list(head), "rows": lines, "note": note}
    (RESULTS / f"{name}.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
