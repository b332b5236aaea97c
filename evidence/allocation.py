"""What the evidence on allocators shares: one measurement of a model for each seed, and plans judged by real divergence at equal bytes."""

from __future__ import annotations

import functools
import itertools
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import Claim, Setting, result
from kept import Kept
from modicum.core.budget import Budget
from modicum.core.plan import Limits, Picks, Table
from modicum.core.progress import Quiet
from modicum.data.splits import slice_rows
from modicum.fit.choose import Chooser
from modicum.fit.request import Request
from modicum.judge.judge import Levels, PlanJudge
from modicum.measure.settings import common
from modicum.measure.subject import Subject
from modicum.measure.survey import Survey
from modicum.numerics.interval import interval
from modicum.sweep.coupling import shortened
from modicum.sweep.curvature import fisher_traces, top_eigenvalues
from modicum.sweep.spill import SpillPool
from modicum.table.findings import Findings
from modicum.work.meter import Meter

# Bits alone, no cuts: what most claims on allocation are about.
BITS = "int2,int3,int4,int6,int8"
# The uniform plan whose bytes everybody may spend.
WIDTH = 3
# What stands for the width of weights that are kept.
KEPT = 16
# Gradients are taken on so many sequences at most.
_GRADIENTS = 8
# Curvature: sequences for traces; tokens of the one sequence, and iterations, for top eigenvalues.
_TRACE_ROWS, _TOP_TOKENS, _TOP_ITERATIONS = 8, 32, 6


@dataclass(frozen=True)
class Scene:
    """A model as one seed measured it: its table, and judges on validation (to choose) and on test sequences (to report).

    Harms are as predicted, layer by layer: no scales learnt from judged plans stand between a claim and its numbers.
    """

    seed: int
    table: Table
    validation: PlanJudge
    test: PlanJudge
    chooser: Chooser
    findings: Findings

    @classmethod
    def measured(
        cls,
        setting: Setting,
        seed: int,
        folder: Path,
        menu: str = BITS,
        curved: bool = False,
        harm: str = "covariance",
        model: str = "demo",
    ) -> Scene:
        """Measure, keeping every form that the judges need; with the curvature of every weight where ``curved``."""
        data = {"samples": setting.samples, "tokens": setting.tokens, "test_samples": setting.test_samples, "gradient_samples": _GRADIENTS}
        request = Request(budget=Budget(bpw=8.0), search_time=0.0, **common(menu=menu, target="modicum", seed=seed, harm=harm, **data))
        subject, pool = Subject.open(model, request), SpillPool(None)
        chooser = Chooser(subject, "modicum", request)
        levels = Levels(folder / "levels", chooser.sizing, Findings(), subject.data.calibration, pool, seed)
        levels.findings = Survey(subject, ["modicum"], folder / "survey", pool, Meter(), Quiet()).run(levels)
        levels.findings.scales = {}
        levels.findings.facts = curvature(subject, seed) if curved else {}
        table = chooser.table(levels.findings)
        validation, test = (PlanJudge(table, levels, part, causal=True) for part in (subject.data.validation, subject.data.test))
        return cls(seed, table, validation, test, chooser, levels.findings)

    def everywhere(self, bits: int) -> Picks:
        """The plan of one width; what has none stays as it is."""
        widths = {site: _width(found) for site, found in self.table.choices.items()}
        return {site: found.index(bits) if bits in found else found.index(KEPT) for site, found in widths.items()}

    def limits(self, bits: int = WIDTH) -> Limits:
        """The bytes of the plan of one width, as the table counts them."""
        return {"bytes": self.table.cost(self.everywhere(bits))}

    def outcome(self, picks: Picks) -> Outcome:
        """What a plan really is, on the test sequences."""
        quality = self.test.quality(picks, self.test.samples)
        nbytes = self.chooser.exact_bytes(self.table, picks, self.findings)
        return Outcome(np.array(quality.divergence), np.mean(quality.candidate), np.mean(quality.original), nbytes)


def _width(choices: Sequence[Any]) -> list[int]:
    """Bits of each choice by its text."""
    return [int(choice.option.partition("bits=")[2].split()[0]) if "bits=" in choice.option else KEPT for choice in choices]


def curvature(subject: Subject, seed: int) -> dict[str, dict[str, float]]:
    """Trace and top eigenvalue of every unit's Hessian, on a few tokens and by few iterations: a minute is short."""
    rows = [slice_rows(subject.data.calibration[0], place, place + 1) for place in range(_TRACE_ROWS)]
    traces = fisher_traces(subject.model, rows, seed=seed)
    tops = top_eigenvalues(subject.model, [shortened(rows[0], _TOP_TOKENS)], seed=seed, iterations=_TOP_ITERATIONS)
    return {unit: {"trace": traces[unit], "eigenvalue": tops[unit]} for unit in traces}


@dataclass(frozen=True)
class Outcome:
    """KL per token by test sequence, log perplexities, and bytes of the files."""

    divergence: np.ndarray
    log_perplexity: float
    original: float
    bytes: int

    @property
    def kl(self) -> float:
        """Mean KL per token."""
        return float(self.divergence.mean())

    def plain(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {
            "divergence": self.divergence.tolist(), "log_perplexity": float(self.log_perplexity), "original": float(self.original),
            "bytes": int(self.bytes),
        }  # fmt: skip

    @classmethod
    def read(cls, plain: dict[str, Any]) -> Outcome:
        """From what JSON kept."""
        return cls(**{**plain, "divergence": np.array(plain["divergence"])})


Found = tuple[dict[str, Outcome], dict[str, Any]]
"""Outcomes by option, and figures that JSON can keep."""


def by_seed(
    kept: Kept, setting: Setting, work: Callable[[Scene], Found], menu: str = BITS, curved: bool = False, model: str = "demo"
) -> list[Found]:
    """What is found in the scene of each seed. Each is a step that is kept; a scene's files go with it."""

    def once(seed: int) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            outcomes, figures = work(Scene.measured(setting, seed, Path(folder), menu, curved, model=model))
        return [{name: outcome.plain() for name, outcome in outcomes.items()}, figures]

    found = [kept(f"{Path(model).name}, seed {seed}", functools.partial(once, seed)) for seed in setting.seeds]
    return [({name: Outcome.read(plain) for name, plain in outcomes.items()}, figures) for outcomes, figures in found]


def joined(found: Sequence[Found]) -> dict[str, list[Outcome]]:
    """Outcomes of each option, seed by seed."""
    return {name: [outcomes[name] for outcomes, _ in found] for name in found[0][0]}


def told(found: Sequence[Found], name: str) -> list[Any]:
    """A figure, seed by seed."""
    return [figures[name] for _, figures in found]


def row(option: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """One option's numbers, seed by seed, the KL's with its interval over sequences."""
    return {
        "option": option,
        "log_perplexity": [float(found.log_perplexity) for found in outcomes],
        "log_perplexity_original": [float(found.original) for found in outcomes],
        "kl": [found.kl for found in outcomes],
        "kl_interval": [list(interval(found.divergence.tolist())[1:]) for found in outcomes],
        "bytes": [found.bytes for found in outcomes],
    }


Chosen = Callable[[Scene, str, Limits], Picks]
"""The plan of an allocator of a name within limits."""


def compare(claim: Claim, chosen: Chosen, curved: bool = False) -> dict[str, Any]:
    """Mean KL of the best baseline minus the method's, at the bytes of the uniform plan."""
    names, kept = [claim.setting.method, *claim.setting.baselines, *claim.setting.beside], Kept.of(claim.id)
    work = lambda scene: ({name: scene.outcome(chosen(scene, name, scene.limits())) for name in names}, {})
    return compared(claim, kept, joined(by_seed(kept, claim.setting, work, curved=curved)))


def compared(
    claim: Claim, kept: Kept, found: dict[str, list[Outcome]], figures: dict[str, Any] | None = None, **conditions: bool
) -> dict[str, Any]:
    """The result of outcomes by option, the method's first; of the claim's baselines the one of least mean KL counts."""
    method, *others = found
    others.sort(key=lambda name: (name in claim.setting.beside, statistics.mean(outcome.kl for outcome in found[name])))
    pairs = [(a.divergence - b.divergence).tolist() for a, b in zip(found[others[0]], found[method])]
    rows = [row(name, found[name]) for name in (method, *others)]
    within = no_larger(claim, rows)
    return result(
        claim,
        kept,
        rows,
        [statistics.mean(pair) for pair in pairs],
        {"intervals": [list(interval(pair)[1:]) for pair in pairs], **(figures or {})},
        {"no more bytes than allowed": within, **conditions},
    )


def no_larger(claim: Claim, rows: Sequence[dict[str, Any]]) -> bool:
    """Whether the method's files have, for every seed, no more bytes than the baseline's and the claim's share of them."""
    return all(a <= b * (1 + claim.setting.extra_bytes) for a, b in zip(rows[0]["bytes"], rows[1]["bytes"]))


def pearson(one: Sequence[float], other: Sequence[float]) -> float:
    """Pearson's correlation."""
    return float(np.corrcoef(one, other)[0, 1])


def hypervolume(points: Sequence[tuple[float, float]], corner: tuple[float, float]) -> float:
    """Area that points dominate (less is better in both) below a corner."""
    inside = sorted((x, y) for x, y in points if x < corner[0] and y < corner[1])
    lowest = list(itertools.accumulate((y for _, y in inside), min))
    ends = [x for x, _ in inside[1:]] + [corner[0]]
    return sum((end - x) * (corner[1] - y) for (x, _), end, y in zip(inside, ends, lowest))
