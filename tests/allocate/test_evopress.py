import importlib
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from modicum.allocate.evopress import evopress
from modicum.allocate.integer_program import integer_program
from modicum.allocate.uniform import uniform
from modicum.core.errors import SettingError

_spec = importlib.util.spec_from_file_location("synthetic_judge", Path(__file__).with_name("synthetic_judge.py"))
synthetic = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)

module = importlib.import_module("modicum.allocate.evopress")


def asked(judge):
    """Numbers of sequences, in the order they were asked for, with how many selections were judged on each in a row."""
    found = []
    for _, samples in judge.asked:
        if not found or found[-1][0] != samples:
            found.append([samples, 0])
        found[-1][1] += 1
    return [tuple(pair) for pair in found]


def test_it_beats_sums_of_harms_where_errors_do_not_add_up():
    real = {name: [] for name in ("evopress", "integer_program", "uniform")}
    for seed in range(5):
        table, limits = synthetic.drawn(seed, sites=10)
        judge = synthetic.SyntheticJudge(table, seed=seed, by_site=0.4, pairs=1.5)
        for choose in (evopress, integer_program, uniform):
            real[choose.__name__].append(judge.truth(choose(table, limits, judge, seed=seed)))
    assert np.mean(real["evopress"]) < 0.85 * np.mean(real["integer_program"])
    assert np.mean(real["evopress"]) < 0.5 * np.mean(real["uniform"])


def test_the_real_divergence_never_rises_from_one_generation_to_the_next():
    table, limits = synthetic.drawn(3, sites=8)
    truths = []
    for generations in range(8):
        judge = synthetic.SyntheticJudge(table, seed=3, by_site=0.5, noise=0.2)
        picks = evopress(table, limits, judge, seed=1, generations=generations)
        truths.append(judge(picks, judge.samples).mean())
    assert truths == sorted(truths, reverse=True) and truths[-1] < truths[0]


def test_no_generations_leave_the_uniform_selection():
    table, limits = synthetic.drawn(0)
    judge = synthetic.SyntheticJudge(table)
    assert evopress(table, limits, judge, generations=0) == uniform(table, limits)
    assert not judge.asked


def test_few_survive_to_large_samples():
    table, limits = synthetic.drawn(0, sites=12)
    judge = synthetic.SyntheticJudge(table, samples=64, by_site=0.3)
    evopress(table, limits, judge, generations=1)
    # Children are probed and judged on a sixteenth, their best on a quarter, the best of these beside their parent on all.
    assert asked(judge) == [(2, 24), (4, 24), (16, 6), (2, 1), (64, 3)]


def test_everything_judged_fits_and_spends_what_is_left():
    table, limits = synthetic.drawn(4, sites=7)
    judge = synthetic.SyntheticJudge(table, by_site=0.3)
    evopress(table, limits, judge, generations=5)
    for picks, _ in judge.asked:
        assert table.fits(picks, limits)
        for site, found in table.choices.items():
            upgrades = [index for index, choice in enumerate(found) if choice.harm < found[picks[site]].harm]
            assert not any(table.fits({**picks, site: index}, limits) for index in upgrades)


def test_children_differ_from_their_parent_by_few_switches():
    table, limits = synthetic.drawn(5, sites=30)
    parent = uniform(table, limits)
    children = module._children(table, parent, limits, np.random.default_rng(0), 60)
    raised = [sum(child[site] > parent[site] for site in parent) for child in children]
    assert len(children) == 60 and parent not in children
    # The lesser of two draws from 1 to 3 is 1 in five of nine; what is left over may raise others.
    assert np.bincount(raised, minlength=3)[1] > 15 and np.median(raised) <= 2


def test_the_search_ends_when_its_time_is_spent(monkeypatch):
    table, limits = synthetic.drawn(2, sites=8)
    judge = synthetic.SyntheticJudge(table, by_site=0.3)
    # A second passes with every sequence judged.
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(judge.sequences)))
    evopress(table, limits, judge, seconds=300)
    one = synthetic.SyntheticJudge(table, by_site=0.3)
    monkeypatch.undo()
    evopress(table, limits, one, generations=1)
    assert 300 <= judge.sequences <= 300 + 2 * one.sequences


def test_without_a_judge_it_says_so():
    table, limits = synthetic.drawn(0)
    with pytest.raises(SettingError, match=r"^evopress: must judge selections by their real divergence, no judge was given\."):
        evopress(table, limits)
