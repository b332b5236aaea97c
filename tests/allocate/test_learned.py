import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modicum.allocate import _learned
from modicum.allocate._learned import Learned, Terms

_spec = importlib.util.spec_from_file_location("synthetic_judge", Path(__file__).with_name("synthetic_judge.py"))
synthetic = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)


def judged(table, judge, selections):
    """The regression on what a judge says of selections."""
    terms = Terms.of(table)
    outcomes = np.array([judge.truth(picks) for picks in selections])
    return Learned(terms, terms.rows(selections), outcomes, np.zeros(len(outcomes)))


def random_selections(table, count, seed=0):
    chance = np.random.default_rng(seed)
    return [{site: int(chance.integers(len(found))) for site, found in table.choices.items()} for _ in range(count)]


def harms(table):
    return np.array([choice.harm for found in table.choices.values() for choice in found])


def test_harms_that_were_right_stay():
    table, _ = synthetic.drawn(0)
    judge = synthetic.SyntheticJudge(table, sequences=0.0)
    learned = judged(table, judge, random_selections(table, 20))
    assert np.allclose(harms(learned.table()), harms(table), rtol=1e-9)
    assert learned.table().fixed == table.fixed


@pytest.mark.parametrize("factor", [0.01, 30.0])
def test_a_common_factor_is_learnt_from_one_judgement(factor):
    table, _ = synthetic.drawn(0)
    judge = synthetic.SyntheticJudge(table, sequences=0.0, scale=factor)
    learned = judged(table, judge, random_selections(table, 1))
    assert np.allclose(harms(learned.table()), factor * harms(table), rtol=1e-9)


@pytest.mark.parametrize("errors", [{"by_site": 0.4}, {"by_option": 0.4}, {"by_site": 0.3, "by_option": 0.2, "by_choice": 0.1}])
def test_judgements_correct_harms_and_predict_other_selections(errors):
    before, after = [], []
    for seed in range(4):
        table, _ = synthetic.drawn(seed, sites=8)
        judge = synthetic.SyntheticJudge(table, seed=seed, sequences=0.0, **errors)
        learned = judged(table, judge, random_selections(table, 30))
        others = random_selections(table, 50, seed=1)
        truth = np.array([judge.truth(picks) for picks in others])
        mean, _ = learned.predict(learned.terms.rows(others))
        after.append(np.abs(np.log(np.maximum(mean, 1e-9) / truth)).mean())
        before.append(np.abs(np.log([learned.harms[row].sum() for row in learned.terms.rows(others)] / truth)).mean())
    assert np.mean(after) < 0.4 * np.mean(before)


def test_options_never_judged_are_corrected_by_those_alike():
    table, _ = synthetic.drawn(0, sites=12)
    judge = synthetic.SyntheticJudge(table, sequences=0.0)
    for site in judge.sites[1:]:
        judge.harms[site][1] *= 1.5  # the second option is worse than predicted, on all sites
    chance = np.random.default_rng(0)
    selections = [{site: 0 if site == judge.sites[0] else int(chance.integers(4)) for site in judge.sites} for _ in range(40)]
    learned = judged(table, judge, selections)
    assert learned.table().choices[judge.sites[0]][1].harm > 1.1 * learned.harms[1]


@given(st.integers(0, 50))
def test_predictions_are_those_of_gaussian_conditioning(seed):
    # The twin writes every covariance out, error by error and pair by pair.
    table, _ = synthetic.drawn(seed, sites=4, options=3)
    judge = synthetic.SyntheticJudge(table, seed=seed, by_site=0.4, pairs=0.5)
    selections, others = random_selections(table, 5, seed), random_selections(table, 3, seed + 1)
    learned = judged(table, judge, selections)
    everything = [*selections, *others]
    places = learned.terms.rows(everything)
    kind = lambda site: "".join("#" if letter.isdigit() else letter for letter in site)
    sites = list(table.choices)

    def covariance(a, b):
        total = 0.0
        for i, j in itertools.product(range(4), range(4)):
            product = learned.harms[places[a, i]] * learned.harms[places[b, j]]
            one, other = (table.choices[sites[k]][everything[c][sites[k]]].option for k, c in ((i, a), (j, b)))
            total += product * _learned.SHARED**2
            total += product * _learned.OPTION**2 * (one == other)
            total += product * _learned.KIND**2 * (kind(sites[i]) == kind(sites[j]))
            total += product * _learned.SITE**2 * (i == j)
            total += product * _learned.OWN**2 * (places[a, i] == places[b, j])
        half = [
            np.sqrt(learned.harms[places[a, i]] * learned.harms[places[b, i]]) * (1 + (places[a, i] == places[b, i])) / 2 for i in range(4)
        ]
        return total + _learned.PAIR**2 / 4 * sum(x * y for x, y in itertools.combinations(half, 2))

    full = np.array([[covariance(a, b) for b in range(8)] for a in range(8)])
    noise = np.maximum(_learned.NOISE * learned.outcomes, _learned._SMALL * learned.harms[places[:5]].sum(1))
    gain = full[5:, :5] @ np.linalg.inv(full[:5, :5] + np.diag(noise**2))
    mean, spread = learned.predict(places[5:])
    predicted = learned.harms[places].sum(1)
    assert np.allclose(mean, predicted[5:] + gain @ (learned.outcomes - predicted[:5]), rtol=1e-6)
    assert np.allclose(spread, full[5:, 5:] - gain @ full[:5, 5:], atol=1e-6 * full.max())


def test_drawn_tables_spread_around_the_expected_one_and_less_with_every_judgement():
    table, _ = synthetic.drawn(2)
    judge = synthetic.SyntheticJudge(table, seed=2, sequences=0.0, by_site=0.2)
    spreads = []
    for count in (1, 5, 40):
        learned = judged(table, judge, random_selections(table, count))
        draws = np.array([harms(learned.table(np.random.default_rng(seed))) for seed in range(200)])
        error = (draws.mean(0) - harms(learned.table())) / np.maximum(draws.std(0), 1e-12) * 200**0.5
        assert np.abs(error).mean() < 2  # below a tenth of the harm a draw is cut off, which moves the mean a little
        spreads.append((draws.std(0) / learned.harms).mean())
    assert spreads[0] > spreads[1] > 1.5 * spreads[2]


def test_judgements_that_make_no_sense_do_no_harm():
    table, _ = synthetic.drawn(0)
    terms, selections = Terms.of(table), random_selections(table, 6)
    for outcomes in (np.zeros(6), np.full(6, 1e-300), np.array([0, 1, 0, 1e6, 0, 1e-6])):
        learned = Learned(terms, terms.rows(selections), outcomes, np.zeros(6))
        assert np.isfinite(harms(learned.table())).all() and (harms(learned.table()) >= 0).all()
        assert np.isfinite(learned.predict(terms.rows(selections))[0]).all()
