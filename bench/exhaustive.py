"""``auto`` against every plan there is: a trained model whose choices are few enough to judge them all."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy as np

from bench.common import show
from modicum.allocate import ALLOCATORS
from modicum.core.budget import Budget
from modicum.core.plan import Picks
from modicum.core.progress import Quiet
from modicum.fit.choose import Chooser
from modicum.fit.request import Request
from modicum.judge.judge import Levels, PlanJudge
from modicum.measure.settings import common
from modicum.measure.subject import Subject
from modicum.measure.survey import Survey
from modicum.sweep.spill import SpillPool
from modicum.table.findings import Findings
from modicum.work.meter import Meter

# Layers that are chosen for, of the first, a middle and the last block; all others stay as they are.
CHOSEN = [
    f"model.layers.{place}"
    for place in ("0.mlp.down_proj", "1.self_attn.o_proj", "3.mlp.down_proj", "4.self_attn.o_proj", "5.mlp.down_proj")
]
MENU = "int2,int3,int4"
SHARES, SEEDS, SECONDS, SAMPLES, TOKENS = (0.3, 0.5, 0.7), 10, 20.0, 8, 256


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        judge = world(Path(folder))
        plans = everything(judge)
        divergences = np.array([judge(picks, judge.samples).mean() for picks in plans])
        bytes_ = np.array([judge.table.cost(picks) for picks in plans])
        print(f"{len(plans)} plans judged", flush=True)
        rows = [compare(judge, share, divergences, bytes_) for share in SHARES]
    show(
        "Exhaustive: auto against the best of all plans, by mean KL on the sequences it chooses by",
        (
            "share of the bytes",
            "plans that fit",
            "best KL",
            "integer program above it",
            "auto above it, median",
            "worst",
            f"seeds of {SEEDS} within 1 %",
        ),
        rows,
        f"demo, {len(CHOSEN)} layers, {MENU}, {len(plans)} plans, {judge.samples} x {TOKENS} tokens; at most {SECONDS:g} s a search.",
    )


def world(folder: Path) -> PlanJudge:
    """The demo, measured for the chosen layers alone."""
    names = Subject.open("demo", Request(budget=Budget(bpw=8.0))).model.units.values()
    keep = tuple({unit.module for unit in names} - set(CHOSEN))
    words = {"samples": 16, "tokens": TOKENS, "test_samples": 2 * SAMPLES, "search_time": 0.0, "target": "modicum", "gradient_samples": 8}
    request = Request(budget=Budget(bpw=8.0), **common(menu=MENU, keep=keep, **words))
    subject, pool = Subject.open("demo", request), SpillPool(None)
    chooser = Chooser(subject, "modicum", request)
    levels = Levels(folder / "levels", chooser.sizing, Findings(), subject.data.calibration, pool, 0)
    levels.findings = Survey(subject, ["modicum"], folder / "survey", pool, Meter(), Quiet()).run(levels)
    return PlanJudge(chooser.table(levels.findings), levels, subject.data.validation, causal=True)


def everything(judge: PlanJudge) -> list[Picks]:
    sites = list(judge.table.choices)
    counts = [range(len(judge.table.choices[site])) for site in sites]
    return [dict(zip(sites, picks)) for picks in itertools.product(*counts)]


def compare(judge: PlanJudge, share: float, divergences: np.ndarray, bytes_: np.ndarray) -> tuple[str, ...]:
    limit = bytes_.min() + share * (bytes_.max() - bytes_.min())
    best = divergences[bytes_ <= limit].min()
    above = lambda picks: 100 * (judge(picks, judge.samples).mean() / best - 1)
    limits = {"bytes": float(limit)}
    found = [above(ALLOCATORS["auto"](judge.table, limits, judge, seed=seed, seconds=SECONDS)) for seed in range(SEEDS)]
    program = above(ALLOCATORS["integer_program"](judge.table, limits))
    within = sum(value <= 1.0 for value in found)
    row = (
        f"{share:.1f}", str(int((bytes_ <= limit).sum())), f"{best:.5f}", f"{program:.2f} %", f"{np.median(found):.2f} %",
        f"{max(found):.2f} %", str(within),
    )  # fmt: skip
    print(*row, flush=True)
    return row


if __name__ == "__main__":
    main()
