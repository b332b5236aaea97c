import importlib
import importlib.util
import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modicum.allocate._cache import Cached
from modicum.allocate._family import fill, skeleton
from modicum.allocate.bisection import Descent, bisection, within
from modicum.core.errors import BudgetError, SettingError
from modicum.core.plan import Choice, Table

_spec = importlib.util.spec_from_file_location("synthetic_judge", Path(__file__).with_name("synthetic_judge.py"))
synthetic = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)
module = importlib.import_module("modicum.allocate.bisection")


def coupled(seed, sites=16):
    """Sites that harm much alike alone, some neighbours of which make each other's errors much worse; and a judge that knows which."""
    chance = np.random.default_rng(seed)
    menu = ((16, 0.0), (8, 0.02), (4, 0.4), (2, 6.0))
    table = Table()
    for site in range(sites):
        alike = chance.uniform(0.9, 1.1)
        table.choices[f"layer{site}"] = [Choice(f"int{bits}", bits * 10, 80, harm * alike) for bits, harm in menu]
    judge = synthetic.SyntheticJudge(table, samples=8, sequences=0.1)
    judge.rho = np.diag(np.where(chance.random(sites - 1) < 0.4, 2.0, 0.0), 1)
    return table, judge


def test_interactions_save_bytes_within_a_tolerance():
    saved = []
    for seed in range(8):
        table, judge = coupled(seed)
        sizes = []
        for pairs in (32, 0):
            picks = within(table, judge, 6.0, pairs=pairs)
            assert judge(picks, judge.samples).mean() <= 6.0
            sizes.append(table.cost(picks))
        saved.append(1 - sizes[0] / sizes[1])
    assert np.mean(saved) > 0.02 and min(saved) >= 0


def test_interactions_are_measured_on_the_share_of_the_sequences_that_is_asked_for():
    def asked(share):
        table, judge = coupled(0)
        within(table, judge, 6.0, share=share)
        return {samples for _, samples in judge.asked}

    assert 4 in asked(1 / 2)
    assert 4 not in asked(1.0)


def test_interactions_lower_the_divergence_within_a_budget():
    ratios = []
    for seed in range(8):
        table, judge = coupled(seed)
        limits = {"bytes": 0.225 * table.cost(dict.fromkeys(table.choices, 0))}
        with_pairs, without = (judge.truth(bisection(table, limits, judge, pairs=pairs)) for pairs in (32, 0))
        ratios.append(with_pairs / without)
    assert np.mean(ratios) < 0.97 and max(ratios) <= 1 + 1e-9


@pytest.mark.parametrize("tolerance", [0.3, 1.0, 3.0, 10.0, 60.0])
def test_bisection_finds_what_trying_every_count_does(tolerance):
    table, judge = coupled(1, sites=9)
    descent = Descent.of(table, table.best(lambda site, choice: (choice.harm,)), {"bytes": 1.0})
    picks, going = descent.start, list(descent.rungs)
    for level in range(1, descent.levels):
        ranked = descent.ranked(level, going, {})
        fitting = [n for n in range(len(ranked) + 1) if judge(descent.lowered(picks, ranked[:n], level), 8).mean() <= tolerance]
        picks, going = descent.lowered(picks, ranked[: fitting[-1]], level), ranked[: fitting[-1]]
    assert within(table, judge, tolerance, pairs=0) == picks


def test_the_ends_of_a_tolerance():
    table, judge = coupled(0)
    assert within(table, judge, 0.0) == dict.fromkeys(table.choices, 0)
    assert within(table, judge, np.inf) == dict.fromkeys(table.choices, 3)


def test_bisection_judges_few():
    table, judge = coupled(0, sites=64)
    within(table, judge, 6.0, pairs=0)
    assert sum(samples == judge.samples for _, samples in judge.asked) <= 1 + 3 * 7


@pytest.mark.parametrize("seed", range(6))
def test_sites_go_down_in_order_until_the_budget_holds(seed):
    table, limits = synthetic.drawn(seed, sites=7)
    steps = [
        (site, level)
        for level in (2, 1, 0)
        for site in sorted(table.choices, key=lambda site, level=level: table.choices[site][level].harm)
    ]
    picks = dict.fromkeys(table.choices, 3)
    for site, level in steps:
        if table.fits(picks, limits):
            break
        picks[site] = level
    assert bisection(table, limits, pairs=0) == fill(table, picks, limits)


def test_measured_interactions_are_the_judges():
    table, judge = coupled(2)
    descent = Descent.of(table, dict.fromkeys(table.choices, 0), {"bytes": 1.0})
    found = descent.measured(Cached(judge), 100)
    assert list(found) and set(found) == set(itertools.pairwise(table.choices))
    for (one, other), strength in found.items():
        assert strength == pytest.approx(judge.rho[judge.sites.index(one), judge.sites.index(other)], abs=1e-6)


def test_only_the_most_harmful_pairs_are_measured_on_a_few_sequences():
    table, limits = synthetic.drawn(0, sites=12)
    judge = synthetic.SyntheticJudge(table, samples=16)
    bisection(table, limits, judge, pairs=3)
    asked = {tuple(picks.values()) for picks, _ in judge.asked}
    assert len(asked) <= 1 + 3 * 3 and {samples for _, samples in judge.asked} == {2, 4}  # the probe, and a quarter
    lowered = [[site for site, index in zip(table.choices, picks) if index != 3] for picks in asked]
    pairs = [tuple(sites) for sites in lowered if len(sites) == 2]
    size = lambda pair: table.choices[pair[0]][1].harm * table.choices[pair[1]][1].harm
    assert sorted(map(size, pairs)) == pytest.approx(sorted(map(size, itertools.pairwise(table.choices)))[-3:])


def test_fewer_pairs_are_measured_where_time_is_short(monkeypatch):
    table, limits = synthetic.drawn(0, sites=40)
    judge = synthetic.SyntheticJudge(table)
    # A second passes with every sequence judged.
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(judge.sequences)))
    bisection(table, limits, judge, seconds=1)
    first, judge.asked = len(judge.asked), []
    bisection(table, limits, judge)
    # Each is asked for the probe and for the sample.
    assert first / 2 <= 1 + 3 * 8 < len(judge.asked) / 2


@given(data=st.data())
def test_levels_leave_out_what_is_bettered(data, tables):
    table, limits = data.draw(tables())
    held = skeleton(table, limits)
    for site, rungs in Descent.of(table, held, limits).rungs.items():
        place = lambda index, site=site: (table.load(table.choices[site][index], limits), table.choices[site][index].harm)
        points = [place(index) for index in rungs]
        assert all(a[0] > b[0] and a[1] < b[1] for a, b in itertools.pairwise(points))
        for other in map(place, table.allowed(site, held)):
            assert any(point[0] <= other[0] and point[1] <= other[1] for point in points)


def test_what_cannot_be_says_what_to_do():
    table, judge = coupled(0)
    with pytest.raises(SettingError, match=r"^bisection: must judge selections by their real divergence, no judge was given\."):
        bisection(table, {"bytes": 1000})
    for site, found in table.choices.items():
        table.choices[site] = found[1:]
    judge = synthetic.SyntheticJudge(table)
    with pytest.raises(
        BudgetError, match=r"^bisection: a divergence of 0\.01 must be reachable, keeping everything gives 0\.\d+\. Allow more\."
    ):
        within(table, judge, 0.01)
