"""What the evidence scripts share: a claim written down before the run, one measurement, one rule for whether it holds."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kept import Kept


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is run; of several ``baselines`` the best counts, the others are reported, and so is what stands ``beside`` and is no part of the claim.

    ``samples`` calibration windows and ``test_samples`` test windows of ``tokens`` tokens, both drawn by the seed; method and baseline
    of one seed see the same. ``extra_bytes`` is the share of the baseline's bytes that the method's files may add.
    """

    method: str
    baselines: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    samples: int = 32
    tokens: int = 128
    test_samples: int = 48
    extra_bytes: float = 0.0
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A system's claim, and what must come out for it to hold: a mean difference in ``metric`` above ``margin`` standard errors."""

    id: str
    system: str
    claim: str
    metric: str
    margin: float
    setting: Setting


def main(claim: Claim) -> None:
    """Run a claim and print its result as JSON."""
    print(json.dumps(run(claim)))


def run(claim: Claim, fit: Callable[..., dict[str, Any]] | None = None, **told: Any) -> dict[str, Any]:
    """Measure everything a claim names, by ``fit`` of an option, a setting and a seed, and judge it; what is ``told`` stands in the result."""
    kept, setting = Kept.of(claim.id), claim.setting
    method, *baselines = [measure(text, setting, kept, fit or fitted) for text in (setting.method, *setting.baselines, *setting.beside)]
    baselines.sort(key=lambda row: (row["option"] in setting.beside, statistics.mean(row["log_perplexity"])))
    return {
        **dataclasses.asdict(claim),
        "seeds": setting.seeds,
        "measured": method,
        "baseline": baselines[0],
        "others": baselines[1:],
        "difference": judge(method, baselines[0], claim.margin),
        "holds": holds(method, baselines[0], claim.margin, setting.extra_bytes),
        **told,
        **({"scenes": kept.scenes} if kept.scenes else {}),
        "seconds": round(kept.seconds, 1),
    }


def measure(text: str, setting: Setting, kept: Kept, fit: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Quality and bytes of one option, seed by seed."""
    found = [kept(f"{text}, seed {seed}", functools.partial(fit, text, setting, seed)) for seed in setting.seeds]
    return {"option": text, **{name: [each[name] for each in found] for name in found[0]}}


def fitted(text: str, setting: Setting, seed: int, model: str = "demo", **more: Any) -> dict[str, Any]:
    """Quality and bytes of one option by one seed, on the demo or another ``model``."""
    import modicum

    receipt = modicum.fit(
        model, method=text, target="modicum", seed=seed,
        samples=setting.samples, tokens=setting.tokens, test_samples=setting.test_samples, allow_broken=True, **more,
    ).receipt  # fmt: skip
    return {
        "log_perplexity": math.log(receipt["quality"]["perplexity"]),
        "log_perplexity_original": math.log(receipt["quality"]["perplexity_original"]),
        "kl": receipt["quality"]["mean"],
        "bytes": receipt["bytes"]["actual"],
    }


def judge(method: dict[str, Any], baseline: dict[str, Any], margin: float) -> dict[str, Any]:
    """Log perplexity of the baseline minus the method's, paired by seed: positive is better."""
    return verdict([b - a for a, b in zip(method["log_perplexity"], baseline["log_perplexity"])], margin)


def holds(method: dict[str, Any], baseline: dict[str, Any], margin: float, extra_bytes: float) -> bool:
    """Whether the difference is clear, and the method's files are no larger than allowed, for every seed."""
    fits = all(a <= b * (1 + extra_bytes) for a, b in zip(method["bytes"], baseline["bytes"]))
    return judge(method, baseline, margin)["clear"] and fits


def verdict(values: Sequence[float], margin: float) -> dict[str, Any]:
    """Mean and standard error of at least two paired differences; clear where the mean exceeds ``margin`` standard errors."""
    mean, error = statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))
    return {"values": list(values), "mean": mean, "standard_error": error, "clear": mean > 0 and mean > margin * error}


def result(
    claim: Claim,
    kept: Kept,
    rows: Sequence[dict[str, Any]],
    gains: Sequence[float],
    figures: dict[str, Any],
    conditions: dict[str, bool],
    data: str | None = None,
) -> dict[str, Any]:
    """A result of a measurement of one's own: the method's row, then the baselines'; it holds where the gains are clear and every condition is met.

    A row is an ``option`` and lists of numbers, one of each seed, under the same names in all rows. ``data`` says what was trained and judged on,
    where that is not windows of the demo's text.
    """
    difference = verdict(gains, claim.margin)
    return {
        **dataclasses.asdict(claim),
        "seeds": claim.setting.seeds,
        "measured": rows[0],
        "baseline": rows[1],
        "others": rows[2:],
        "gains": list(gains),
        "figures": figures,
        "conditions": conditions,
        "difference": difference,
        "holds": difference["clear"] and all(conditions.values()),
        **({} if data is None else {"data": data}),
        **({"scenes": kept.scenes} if kept.scenes else {}),
        "seconds": round(kept.seconds, 1),
    }


def show(found: dict[str, Any]) -> None:
    """Print a result as JSON."""
    print(json.dumps(found))
