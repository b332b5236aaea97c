import importlib
import importlib.util
import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modicum.allocate.auto import auto, near_ties
from modicum.allocate.evopress import evopress
from modicum.allocate.integer_program import integer_program

_spec = importlib.util.spec_from_file_location("synthetic_judge", Path(__file__).with_name("synthetic_judge.py"))
synthetic = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)

module = importlib.import_module("modicum.allocate.auto")
MIXED = {"by_site": 0.4, "by_option": 0.3, "by_choice": 0.2}


def excess(table, limits, judge, picks):
    """How much more a selection diverges than the best there is, as a share."""
    return judge.truth(picks) / synthetic.best(table, limits, judge) - 1


@pytest.mark.parametrize(
    "errors", [MIXED, {"pairs": 0.8}, {**MIXED, "pairs": 0.4, "noise": 0.02, "scale": 3.0}], ids=["harms", "interactions", "all"]
)
def test_the_best_there_is_is_found_by_few_judgements(errors):
    found, program, judged = [], [], []
    for seed in range(10):
        table, limits = synthetic.drawn(seed)
        judge = synthetic.SyntheticJudge(table, seed=seed, **errors)
        found.append(excess(table, limits, judge, auto(table, limits, judge)))
        program.append(excess(table, limits, judge, integer_program(table, limits)))
        judged.append(judge.sequences / judge.samples)
    assert sum(share < 0.01 for share in found) >= 9
    assert sum(share < 0.01 for share in program) <= 7 and np.mean(found) < 0.2 * np.mean(program)
    # In passes over all sequences; there are up to a thousand selections.
    assert np.mean(judged) < 15


def test_structure_is_found_too():
    found, program = [], []
    for seed in (1, 6, 9, 10, 14):
        table, limits = synthetic.grown(seed)
        judge = synthetic.SyntheticJudge(table, seed=seed, by_site=0.5, by_option=0.3, by_choice=0.2, pairs=0.3)
        found.append(excess(table, limits, judge, auto(table, limits, judge)))
        program.append(excess(table, limits, judge, integer_program(table, limits)))
    assert sum(share < 0.01 for share in found) >= 4 and np.mean(found) < 0.2 * np.mean(program)


def test_it_costs_less_than_evolution_and_finds_more():
    diverges, sequences = {auto: [], evopress: [], integer_program: []}, {auto: 0, evopress: 0, integer_program: 0}
    for seed, choose in itertools.product(range(2), diverges):
        table, limits = synthetic.drawn(seed, sites=30, options=6)
        judge = synthetic.SyntheticJudge(table, seed=seed, **MIXED, pairs=0.4)
        diverges[choose].append(judge.truth(choose(table, limits, judge)))
        sequences[choose] += judge.sequences
    assert np.mean(diverges[auto]) < np.mean(diverges[evopress]) < np.mean(diverges[integer_program])
    assert np.mean(diverges[auto]) < 0.9 * np.mean(diverges[integer_program])
    assert sequences[auto] < sequences[evopress] / 3


@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_it_is_never_worse_than_the_integer_program_on_all_sequences(noise):
    for seed in range(6):
        table, limits = synthetic.drawn(seed, sites=7)
        judge = synthetic.SyntheticJudge(table, seed=seed, by_site=0.1, noise=noise)
        ours, theirs = (judge(choose(table, limits, judge, seed=seed), judge.samples).mean() for choose in (auto, integer_program))
        assert ours <= theirs


@settings(max_examples=10)
@given(data=st.data())
def test_it_is_never_worse_on_tables_of_any_kind(data, tables, judge_of):
    table, limits = data.draw(tables())
    judge = judge_of(table)
    start = integer_program(table, limits)
    if table.fits(start, limits):
        picks = auto(table, limits, judge)
        assert judge(picks, judge.samples).mean() <= judge(start, judge.samples).mean()


class Alike:
    """A judge of one mind about everything."""

    samples = 8

    def __init__(self, value):
        self.value, self.judged = value, 0

    def __call__(self, picks, samples):
        self.judged += 1
        return np.full(samples, self.value)

    def many(self, candidates, samples):
        return [self(picks, samples) for picks in candidates]


@pytest.mark.parametrize("value", [0.0, 1.0, np.inf])
def test_without_a_difference_the_integer_program_stands(value):
    table, limits = synthetic.drawn(1)
    assert auto(table, limits, Alike(value)) == integer_program(table, limits)


def test_a_ruined_program_is_replaced():
    table, limits = synthetic.drawn(1)
    start, sound = integer_program(table, limits), synthetic.SyntheticJudge(table, seed=1)
    ruin = lambda picks, samples: np.full(samples, np.inf) if picks == start else sound(picks, samples)
    judge = SimpleNamespace(samples=sound.samples, many=lambda candidates, samples: [ruin(picks, samples) for picks in candidates])
    assert np.isfinite(ruin(auto(table, limits, judge), 4)).all()


def test_without_a_judge_it_is_the_integer_program():
    table, limits = synthetic.drawn(3)
    assert auto(table, limits) == integer_program(table, limits)


def test_one_sequence_is_enough():
    table, limits = synthetic.drawn(3)
    judge = synthetic.SyntheticJudge(table, samples=1, seed=3, **MIXED)
    assert excess(table, limits, judge, auto(table, limits, judge)) < 0.01


def test_evaluations_are_bounded_and_begin_small():
    table, limits = synthetic.drawn(0, sites=24, options=6)
    judge = synthetic.SyntheticJudge(table, samples=32, by_site=0.8, noise=0.01)
    auto(table, limits, judge)
    small, *raced = (sum(samples == size for _, samples in judge.asked) for size in (4, 8, 16, 32))
    assert small <= module.EVALUATIONS and small + sum(raced) == len(judge.asked)
    # Whoever loses more on a few sequences is judged on no more of them.
    assert raced == sorted(raced, reverse=True) and raced[0] <= 1 + module.FINALISTS * (1 + module.EVALUATIONS // module.ROUND)
    assert all(table.fits(picks, limits) for picks, _ in judge.asked)


@pytest.mark.parametrize("seconds", [100, 300])
def test_no_round_begins_that_the_time_left_is_too_short_for(monkeypatch, seconds):
    table, limits = synthetic.drawn(0, sites=24, options=6)
    judge = synthetic.SyntheticJudge(table, by_site=0.8, noise=0.01)
    # A second passes with every sequence judged. The starts take about fifty, a round about sixty, or two finalists more than the last.
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(judge.sequences)))
    auto(table, limits, judge, seconds=seconds)
    assert seconds - 80 <= judge.sequences <= seconds + module.FINALISTS * judge.samples


def test_where_judging_is_slow_a_few_sequences_find_a_better_selection_and_none_is_worse(monkeypatch):
    """A sequence takes 2.4 s and a minute is allowed, so that not even two selections could be judged on all of them."""
    better = []
    for seed in range(8):
        table, limits = synthetic.drawn(seed, sites=24, options=6)
        judge = synthetic.SyntheticJudge(table, samples=32, seed=seed, by_site=0.8, by_option=0.4, noise=0.02)
        clock = SimpleNamespace(monotonic=lambda judge=judge: 2.4 * judge.sequences)
        monkeypatch.setattr(module, "time", clock)
        monkeypatch.setattr("modicum.allocate._family.time", clock)
        picks, start = auto(table, limits, judge, seconds=60.0), integer_program(table, limits)
        assert judge.sequences <= 60 / 2.4 + module.ROUND
        ours, theirs = (judge(found, judge.samples).mean() for found in (picks, start))
        assert ours < theirs or picks == start
        better.append(ours < theirs)
    assert sum(better) >= 4


@pytest.mark.parametrize("seed", range(4))
def test_a_structure_moves_one_rung_and_all_else_is_the_best_under_it(seed):
    table, limits = synthetic.grown(seed)
    judge = module.Cached(synthetic.SyntheticJudge(table))
    start = integer_program(table, limits)
    search = module._Search(module.Terms.of(table), limits, judge, start, np.random.default_rng(seed), 0.0, 0.0)
    fitting = list(synthetic.selections(table, limits))
    structures = list(search.structures())
    assert structures
    for structure in structures:
        moved = [site for site in table.children if structure[site] != start[site]]
        # Where a block goes or comes back its cut follows.
        assert moved and (len(moved) == 1 or moved[0] == "depth")
        harms = [table.harm(picks) for picks in fitting if all(picks[site] == index for site, index in structure.items())]
        found = search.solved(table, structure)
        assert all(found[site] == index for site, index in structure.items())
        assert table.fits(found, limits) == bool(harms)
        assert not harms or table.harm(found) == pytest.approx(min(harms), rel=1e-5)


@settings(max_examples=25)
@given(data=st.data())
def test_near_ties_are_the_least_harmful_of_all_that_differ_little(data, tables, selections):
    table, limits = data.draw(tables())
    fitting = [picks for picks in selections(table) if table.fits(picks, limits)]
    if not fitting:
        return
    picks = data.draw(st.sampled_from(fitting))
    leaves = [site for site in table.choices if site not in table.children]
    differs = lambda other: sum(other[site] != picks[site] for site in leaves)
    same = lambda other: all(other[site] == picks[site] for site in table.children)
    near = sorted(table.harm(other) for other in fitting if same(other) and 1 <= differs(other) <= 2)
    found = near_ties(table, picks, limits, 7)
    assert all(table.consistent(other) and table.fits(other, limits) and 1 <= differs(other) <= 2 for other in found)
    assert [table.harm(other) for other in found] == pytest.approx(near[:7])
