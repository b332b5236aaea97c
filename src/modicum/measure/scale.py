"""One currency for all families: what each kind of option really costs, learnt from random plans judged for real.

A harm is a second-order, layer-wise prediction. It falls short by a factor that differs between kinds: rounding spreads its error over
all directions, a cut's lies in few. Random plans that mix all kinds tell the factors.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from modicum.allocate._family import pace
from modicum.allocate.random import spread
from modicum.core.option import KEEP
from modicum.core.plan import Picks, Table
from modicum.judge.judge import PlanJudge
from modicum.table.findings import DEPTH, GONE, kind_of
from modicum.table.sizing import level_of

# Random plans to learn from; sequences to judge each on, and tokens that are enough of them.
PLANS, SEQUENCES, _TOKENS = 30, 8, 2048
# Every plan's rank is predicted from factors learnt without its fold.
_FOLDS = 5
# How strongly a factor is held at its prior, against one plan's relative error.
_TRUST = 0.3
# Beyond, the output is ruined and divergences no longer add up.
_RUINED = 1.0
# Plans are drawn until enough are not ruined, at most so many times as many; the share of cuts that stay in them.
_DRAWS, _CUT = 8, 0.25


def learn(
    table: Table, judge: PlanJudge, seed: int, seconds: float = math.inf, tick: Callable[[], None] = lambda: None
) -> tuple[dict[str, float], dict[str, Any]]:  # fmt: skip
    """Factor by kind of option, on top of the table's own, and how harm ranks ``PLANS`` random plans: Spearman's correlation with their divergence.

    The correlation with the factors is out of fold: no plan is ranked by factors it helped to learn. Where ``seconds`` are short plans are judged
    on fewer sequences, down to one, and then fewer plans.
    """
    begun, plans = time.monotonic(), gentle(table, seed)
    judge.prepare(plans)
    # Forms take what they take; half of the time is for judging in any case.
    seconds, begun = max(seconds / 2, seconds - (time.monotonic() - begun)), time.monotonic()
    samples = _affordable(judge, plans, seconds)
    real: list[float] = []
    for picks in plans:
        real.append(float(judge(picks, samples).mean()))
        tick()
        if time.monotonic() - begun > seconds and len(real) >= _FOLDS:
            break
    kinds = [parts(table, picks) for picks in plans[: len(real)]]
    return fitted(kinds, real), _rank(kinds, real, samples)


def _affordable(judge: PlanJudge, plans: Sequence[Picks], seconds: float) -> int:
    """Sequences to judge each plan on: enough tokens, as far as ``seconds`` allow."""
    samples = min(judge.samples, SEQUENCES, max(SEQUENCES // 2, math.ceil(_TOKENS / max(1, judge.tokens))))
    if not plans or samples == 1 or seconds == math.inf:
        return samples
    return max(1, min(samples, int(seconds / PLANS / pace(judge, plans[0]))))


def gentle(table: Table, seed: int) -> list[Picks]:
    """Random plans of all sizes and kinds that are not predicted to ruin the model; cuts in them are few."""
    chance = np.random.default_rng(seed)
    found = []
    for turn in range(_DRAWS):
        for picks in spread(table, PLANS, seed + turn):
            whole = {site: _whole(table, site) for site in table.children if chance.random() > _CUT}
            picks = table.settle({**picks, **whole})
            if 0 < table.harm(picks) < _RUINED:
                found.append(picks)
        if len(found) >= PLANS:
            break
    return [found[place] for place in chance.permutation(len(found))[:PLANS]]


def _whole(table: Table, site: str) -> int:
    return next((index for index, choice in enumerate(table.choices[site]) if choice.option == KEEP), 0)


def parts(table: Table, picks: Picks) -> dict[str, float]:
    """Summed harm of a selection by kind of option; what depth costs, under the name of its site."""
    found: dict[str, float] = {}
    for site, index in picks.items():
        choice = table.choices[site][index]
        if choice.harm > 0 and choice.option not in (KEEP, GONE):
            kind = DEPTH if site == DEPTH else kind_of(site, level_of(choice.option))
            found[kind] = found.get(kind, 0.0) + choice.harm
    return found


def fitted(plans: Sequence[Mapping[str, float]], real: Sequence[float]) -> dict[str, float]:
    """Factors of least squared log error ``log Σ_k s_k h_pk - log KL_p``, each held at 1 in proportion to ``_TRUST``.

    Spans of blocks have none: what they cost was measured as a divergence.
    """
    kinds = sorted({kind for plan in plans for kind in plan} - {DEPTH})
    usable = [place for place, value in enumerate(real) if value > 0 and sum(plans[place].values()) > 0]
    if not usable or not kinds:
        return {}
    harms = np.array([[plans[place].get(kind, 0.0) for kind in kinds] for place in usable])
    spans = np.array([plans[place].get(DEPTH, 0.0) for place in usable])
    wanted = np.log([real[place] for place in usable])
    # Arithmetic alone makes outputs differ a little: a floor under all divergences, which belongs to no kind.
    floor = np.log(1e-2 * np.exp(wanted).min())
    error = lambda x: np.concatenate(
        [np.log(harms @ np.exp(x[:-1]) + spans + np.exp(x[-1])) - wanted, _TRUST * x[:-1], [0.1 * (x[-1] - floor)]]
    )
    return {kind: float(np.exp(log)) for kind, log in zip(kinds, least_squares(error, np.append(np.zeros(len(kinds)), floor)).x[:-1])}


def _rank(plans: Sequence[Mapping[str, float]], real: Sequence[float], samples: int) -> dict[str, Any]:
    before, after = [sum(plan.values()) for plan in plans], []
    for place, plan in enumerate(plans):
        others = [index for index in range(len(plans)) if index % _FOLDS != place % _FOLDS]
        scales = fitted([plans[index] for index in others], [real[index] for index in others])
        after.append(sum(harm * scales.get(kind, 1.0) for kind, harm in plan.items()))
    ratios = [value / predicted for value, predicted in zip(real, after) if predicted > 0]
    return {
        "plans": len(real), "sequences": samples, "spearman": _spearman(after, real), "unscaled": _spearman(before, real),
        "real_over_predicted": float(np.median(ratios)) if ratios else None,
    }  # fmt: skip


def _spearman(predicted: Sequence[float], real: Sequence[float]) -> float | None:
    from scipy.stats import spearmanr  # half a second that a command which ranks nothing need not wait

    return float(spearmanr(predicted, real).statistic) if len(set(predicted)) > 1 and len(set(real)) > 1 else None
