import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from modicum.allocate import ALLOCATORS
from modicum.allocate.integer_program import integer_program
from modicum.allocate.nsga2 import FIRST, ROUND, ROUNDS, SAMPLES, _evolved, _Predictor, _ridge, _Space, front, nsga2
from modicum.allocate.random import random, spread
from modicum.allocate.uniform import uniform
from modicum.core.errors import SettingError
from modicum.core.plan import Choice, Table

pytest.importorskip("pymoo")
_spec = importlib.util.spec_from_file_location("synthetic_judge", Path(__file__).with_name("synthetic_judge.py"))
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)


def judge_of(table, seed, **settings):
    """A judge that knows better than the table: errors of sites, options and choices, and interactions of pairs."""
    errors = {"samples": 8, "by_site": 0.5, "by_option": 0.5, "by_choice": 0.4, "pairs": 1.0, "noise": 0.02}
    return _module.SyntheticJudge(table, seed=seed, **errors | settings)


def joint(seed, blocks=6):
    """Depth, two levels of cuts in every block, and six bit widths on two weights under each."""
    chance = np.random.default_rng([seed, 9])
    every = ["keep", *(f"drop b{i}" for i in range(1, blocks))]
    table = Table({"depth": [Choice(o, 0, 0, 0.0 if o == "keep" else chance.uniform(0.1, 1.0)) for o in every]}, {"bytes": 100})
    for block in (f"b{i}" for i in range(blocks)):
        alive, cut = tuple(o for o in every if o != f"drop {block}"), f"{block}.cut"
        levels = (("whole", 0.0, 1.0), ("cut 1", 0.03, 0.75), ("cut 2", 0.15, 0.5))
        gone = [Choice("gone", 0, 0, 0.0, given=(f"drop {block}",))] if len(alive) < len(every) else []
        table.choices[cut] = [*(Choice(o, 0, 0, harm * chance.uniform(0.3, 3), given=alive) for o, harm, _ in levels), *gone]
        table.parents[cut] = "depth"
        for name in (f"{block}.up", f"{block}.down"):
            weights, feels = int(chance.integers(400, 1600)), chance.exponential(0.4)
            table.choices[name] = [
                Choice(
                    f"int{bits}",
                    int(weights * share) * bits // 8,
                    int(weights * share),
                    0.0 if bits == 16 else feels * share * chance.uniform(0.7, 1.4) * 3.0 ** (2 - bits),
                    given=(level,),
                )  # fmt: skip
                for level, _, share in levels
                for bits in (2, 3, 4, 6, 8, 16)
            ] + [Choice("gone", 0, 0, 0.0, given=("gone",))]
            table.parents[name] = cut
    return table


def limit(seed, within):
    table = joint(seed)
    return table, within(table, [0.15, 0.25, 0.35][seed % 3])


# The claims


class Part:
    """A judge of a table that has only some of the choices."""

    def __init__(self, judge, part):
        self.judge, self.part, self.samples = judge, part, judge.samples

    def whole(self, picks):
        return {site: self.judge.table.choices[site].index(self.part.choices[site][index]) for site, index in picks.items()}

    def __call__(self, picks, samples):
        return self.judge(self.whole(picks), samples)

    def many(self, candidates, samples):
        return [self(picks, samples) for picks in candidates]


def kept(table, keep):
    return replace(table, choices={site: [c for c in found if keep(site, c)] for site, found in table.choices.items()})


def structure_then_bits(table, limits, judge, seed, bits):
    """The same search, first of structure at ``bits`` everywhere, then of bits on the structure it found."""
    first = Part(judge, kept(table, lambda site, choice: site in table.children or choice.option in (bits, "gone")))
    found = first.whole(nsga2(first.part, limits, first, seed=seed, rounds=1))
    second = Part(
        judge, kept(table, lambda site, choice: site not in table.children or table.choices[site].index(choice) == found[site])
    )  # fmt: skip
    return second.whole(nsga2(second.part, limits, second, seed=seed, rounds=1))


@pytest.fixture(scope="module")
def found(within):
    """Five tables searched: (table, limits, judge, truth of the answer)."""
    found = []
    for seed in range(5):
        table, limits = limit(seed, within)
        judge = judge_of(table, seed)
        found.append((table, limits, judge, judge.truth(nsga2(table, limits, judge, seed=seed, rounds=2))))
    return found


@pytest.mark.parametrize("bits", ["int4", pytest.param("int3", marks=pytest.mark.slow), pytest.param("int6", marks=pytest.mark.slow)])
def test_structure_and_bits_at_once_beat_structure_then_bits(bits, found):
    gains, more = [], []
    for seed, (table, limits, judge, both) in enumerate(found):
        other = judge_of(table, seed)
        gains.append(np.log(other.truth(structure_then_bits(table, limits, other, seed, bits)) / both))
        more.append(other.candidates - judge.candidates)
    assert np.mean(gains) > 0.15 and np.mean(more) >= 0  # at no more evaluations


def test_it_beats_the_baselines_at_equal_evaluations(found):
    over = {"random": [], "uniform": [], "integer_program": []}
    for table, limits, judge, truth in found:
        drawn = min(judge.truth(random(table, limits, seed=turn)) for turn in range(judge.candidates))
        for name, other in (("random", drawn), ("uniform", judge.truth(uniform(table, limits)))):
            over[name].append(np.log(other / truth))
        over["integer_program"].append(np.log(judge.truth(integer_program(table, limits)) / truth))
    assert all(np.mean(logs) > 0.15 for logs in over.values())
    assert min(over["integer_program"]) > -0.02  # noise of the judge


@pytest.mark.parametrize("seed", range(3))
def test_it_is_never_worse_than_the_integer_program_on_the_judges_sequences(seed, within):
    table, limits = limit(seed, within)
    judge = judge_of(table, seed, samples=20, noise=1.0)
    found, known = (judge(picks, 20).mean() for picks in (nsga2(table, limits, judge, seed=seed, rounds=1), integer_program(table, limits)))
    assert found <= known


def test_the_front_dominates_that_of_random_selections():
    volumes = []
    for seed in range(2):
        table = joint(seed)
        judge = judge_of(table, seed, noise=0.0)
        points = front(table, judge, seed=seed, rounds=3)
        most = table.cost({site: 5 if site[-1] != "t" and site != "depth" else 0 for site in table.choices})
        drawn = spread(table, judge.candidates, seed)
        volumes.append([volume([(c, k) for _, c, k in points], most), volume([(table.cost(p), judge(p, 8).mean()) for p in drawn], most)])
    assert all(found < 0.9 * other for found, other in volumes)


def volume(points, most):
    """Area under the stairs of the least log KL that can be had at every cost up to ``most``; less is better."""
    costs = np.linspace(0.1 * most, most, 200)
    return np.mean([min((np.log10(max(kl, 1e-4)) for cost, kl in points if cost <= limit), default=1.0) + 5 for limit in costs])


# The front and the search


def test_a_front_is_judged_and_undominated_from_the_least_up():
    table = joint(1, blocks=3)
    judge = judge_of(table, 1, samples=12)
    points = front(table, judge, seed=2, rounds=2)
    costs, divergences = [cost for _, cost, _ in points], [kl for _, _, kl in points]
    assert len(points) > 5 and costs == sorted(set(costs)) and divergences == sorted(set(divergences), reverse=True)
    for picks, cost, kl in points:
        assert table.consistent(picks) and table.cost(picks) == cost and kl == pytest.approx(judge(picks, 12).mean())
    assert front(table, judge, seed=2, rounds=2) == points
    assert divergences[-1] == 0 and table.harm(points[-1][0]) == 0  # what keeps everything


def test_another_resource_has_another_front():
    table = joint(0, blocks=3)
    points = front(table, judge_of(table, 0), rounds=1, resource="values")
    assert [cost for _, cost, _ in points] == [table.cost(picks, "values") for picks, _, _ in points]


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_judgements_are_counted_and_finalists_judged_on_all(rounds, within):
    table, limits = limit(0, within)
    judge = judge_of(table, 0, samples=20)
    nsga2(table, limits, judge, seed=0, rounds=rounds)
    assert judge.candidates <= FIRST + ROUND * rounds + 5 and judge.sequences <= SAMPLES * (FIRST + ROUND * rounds) + 20 * 5
    most = {}
    for picks, samples in judge.asked:
        most[tuple(picks.items())] = max(samples, most.get(tuple(picks.items()), 0))
    assert {SAMPLES, 20} >= set(most.values()) and 20 in most.values() and judge.sequences == sum(most.values())


@pytest.mark.parametrize("seconds, expected", [(0.5, 1), (3.5, 4), (5.5, 6)])
def test_time_ends_it_or_lets_it_go_on(seconds, expected, within, monkeypatch):
    # A clock that only judging moves: a second for each call, one of them before the first round.
    table, limits = limit(1, within)
    judge, clock = judge_of(table, 0), SimpleNamespace(monotonic=lambda: float(judge.calls))
    monkeypatch.setattr(sys.modules[nsga2.__module__], "time", clock)
    nsga2(table, limits, judge, seed=0, rounds=0, seconds=seconds)
    assert judge.calls == expected


def test_lost_candidates_are_passed_over(within):
    table, limits = limit(1, within)
    judge = judge_of(table, 1)
    outcomes = judge.many
    judge.many = lambda candidates, samples: [
        found if place % 3 else np.full(samples, np.inf) for place, found in enumerate(outcomes(candidates, samples), 1)
    ]
    found = nsga2(table, limits, judge, seed=0, rounds=2)
    assert table.fits(found, limits) and judge.truth(found) <= judge.truth(integer_program(table, limits)) * 1.05


def test_it_is_found_by_its_name_and_needs_a_judge():
    assert ALLOCATORS["nsga2"] is nsga2 and ROUNDS > 0
    with pytest.raises(SettingError, match="nsga2: must judge selections by their real divergence, no judge was given"):
        nsga2(joint(0), {"bytes": 5000})


def test_without_pymoo_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymoo", None)
    table = joint(0, blocks=2)
    for search in (lambda judge: nsga2(table, {"bytes": 5000}, judge), lambda judge: front(table, judge)):
        with pytest.raises(SettingError, match=r"nsga2: pymoo must be installed, is not. Install modicum\[search\]"):
            search(judge_of(table, 0))


# Selections as rows


@given(data=st.data())
def test_rows_are_settled_and_summed_as_the_table_does(data, tables):
    table, limits = data.draw(tables())
    space, chance = _Space(table, limits), np.random.default_rng(0)
    rows = chance.integers(0, space.counts, (20, len(space.sites)))
    for row, settled, load in zip(rows, space.settled(rows), space.loads(space.settled(rows))):
        picks = table.settle(dict(zip(space.sites, row.tolist())))
        assert list(picks.values()) == settled.tolist()
        shares = [(table.cost(picks, r) - table.fixed.get(r, 0)) / max(most - table.fixed.get(r, 0), 1e-30) for r, most in limits.items()]
        assert load == pytest.approx(max(shares))


# The predictor


def rows_of(space, plans):
    return space.rows(tuple(picks[site] for site in space.sites) for picks in plans)


@pytest.mark.parametrize("seed", range(4))
def test_the_predictor_ranks_better_than_the_table(seed):
    table = joint(seed)
    space, judge = _Space(table, {"bytes": 1}), judge_of(table, seed, noise=0.0)
    plans = spread(table, 80, seed)
    real = np.array([judge.truth(picks) for picks in plans])
    near = np.array([0.02 < kl < 2 for kl in real])
    known = np.arange(len(plans)) % 2 == 0
    predictor = _Predictor(space, rows_of(space, plans)[known], real[known])
    rank = lambda values: spearmanr(values, real[near & ~known]).statistic
    held = [picks for picks, wanted in zip(plans, near & ~known) if wanted]
    assert rank(predictor(rows_of(space, held))) > rank([table.harm(picks) for picks in held])


def test_where_the_table_is_right_so_is_the_predictor():
    table = joint(0)
    space = _Space(table, {"bytes": 1})
    plans = spread(table, 40, 0)
    harms = np.array([table.harm(picks) for picks in plans])
    predicted = _Predictor(space, rows_of(space, plans)[::2], 3.0 * harms[::2])(rows_of(space, plans))
    assert predicted[harms > 0] == pytest.approx(np.log(3.0 * harms[harms > 0]), abs=1e-6)


def test_without_divergences_it_predicts_by_harm_alone():
    table = joint(0, blocks=2)
    space = _Space(table, {"bytes": 1})
    rows = rows_of(space, spread(table, 6, 0))
    predictor = _Predictor(space, rows, np.full(len(rows), np.inf))
    assert np.isfinite(predictor(rows)).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_penalty_is_the_one_of_least_error_left_out(seed):
    chance = np.random.default_rng(seed)
    features = chance.normal(size=(12, 30))
    wanted = features[:, :3].sum(1) + chance.normal(size=12)
    naive = {}
    for penalty in np.geomspace(1e-4, 10.0, 11) * np.linalg.eigvalsh(features @ features.T).mean():
        fit = lambda x, y, penalty=penalty: np.linalg.solve(x.T @ x + penalty * np.eye(30), x.T @ y)
        left = [wanted[i] - features[i] @ fit(np.delete(features, i, 0), np.delete(wanted, i)) for i in range(12)]
        naive[float(np.square(left).mean())] = fit(features, wanted)
    assert _ridge(features, wanted) == pytest.approx(naive[min(naive)])


def test_the_genetic_algorithm_finds_what_the_predictor_likes_best(within, selections, grown):
    table = grown(0)
    limits = within(table, 0.4)
    space = _Space(table, limits)
    every = [picks for picks in selections(table) if table.fits(picks, limits)]
    plans = every[:: len(every) // 40]
    predictor = _Predictor(space, rows_of(space, plans), np.array([table.harm(picks) + 0.1 for picks in plans]))
    start = space.settled(np.random.default_rng(0).integers(0, space.counts, (80, len(space.sites))))
    found = _evolved(space, predictor, start, (0.5, 1.0), 0)
    least = predictor(rows_of(space, every)).min()
    fitting = found[space.loads(found) <= 1]
    assert predictor(fitting).min() <= least + 0.1 * (np.median(predictor(rows_of(space, every))) - least)
    assert (space.loads(found) <= 1).all() and (space.loads(found) >= 0.5).all()
