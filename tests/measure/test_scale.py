"""Scales: the factor of each kind of option comes back from plans judged for real, and ranks are of plans not learnt from."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modicum.core.plan import Choice, Table
from modicum.measure import scale
from modicum.measure.scale import fitted, gentle, learn, parts
from modicum.table.findings import DEPTH, GONE

KINDS = ("gptq bits=2", "gptq bits=4", "svd", "ziplm on ffn")


def plans(count, seed=0, kinds=KINDS):
    """Random harms by kind, of sizes that differ a hundredfold."""
    chance = np.random.default_rng(seed)
    return [{kind: float(np.exp(chance.uniform(-6, -1))) for kind in kinds if chance.random() < 0.7} for _ in range(count)]


def real(plans, factors, noise=0.0, floor=0.0, seed=1):
    chance = np.random.default_rng(seed)
    return [sum(factors[kind] * harm for kind, harm in plan.items()) * float(np.exp(noise * chance.normal())) + floor for plan in plans]


FACTORS = {"gptq bits=2": 1.5, "gptq bits=4": 1.0, "svd": 0.6, "ziplm on ffn": 4.0}


def test_known_factors_are_recovered():
    found = fitted(plans(200), real(plans(200), FACTORS))
    assert found == pytest.approx(FACTORS, rel=0.02)


def test_factors_are_recovered_from_thirty_noisy_plans():
    found = fitted(plans(30), real(plans(30), FACTORS, noise=0.2))
    assert max(abs(np.log(found[kind] / FACTORS[kind])) for kind in KINDS) < 0.3


def test_a_floor_under_all_divergences_belongs_to_no_kind():
    """Arithmetic alone makes outputs differ; plans of tiny harm would otherwise teach enormous factors."""
    given = [{kind: harm * 1e-4 for kind, harm in plan.items()} for plan in plans(20)] + plans(60, seed=3)
    judged = real(given, FACTORS, floor=3e-5)
    assert fitted(given, judged) == pytest.approx(FACTORS, rel=0.25)


def test_few_plans_stay_near_one():
    """One plan says little of four kinds, and what it says is shared among them."""
    plan = dict.fromkeys(KINDS, 0.01)
    (factor,) = {round(value, 6) for value in fitted([plan], [0.4]).values()}
    assert 1 < factor < 10
    assert fitted([plan], [0.04]) == pytest.approx(dict.fromkeys(KINDS, 1.0), rel=0.05)


def test_nothing_learnt_from_nothing():
    assert fitted([], []) == {} == fitted([{}], [0.1]) == fitted([{"svd": 0.1}], [0.0])


def test_a_kind_nobody_tried_keeps_its_prior():
    given = plans(30, kinds=("svd",))
    assert set(fitted(given, [0.1 + sum(plan.values()) for plan in given])) == {"svd"}


@given(st.lists(st.floats(0.1, 10.0), min_size=4, max_size=4), st.integers(0, 1000))
def test_factors_scale_with_all_divergences(values, seed):
    """They are positive, and what all plans cost more is what the factors say more, within what holds them near one."""
    factors, given = dict(zip(KINDS, values)), plans(60, seed)
    given = [plan or {"svd": 0.01} for plan in given]
    found = fitted(given, real(given, factors))
    assert all(value > 0 for value in found.values())
    assert max(abs(np.log(found[kind] / factors[kind])) for kind in found) < 0.5


def test_spans_have_no_factor():
    """What they cost was measured as a divergence, and is taken as it is; it does not spoil the other factors."""
    given = [{**plan, DEPTH: 0.3} if place % 2 else plan for place, plan in enumerate(plans(200))]
    found = fitted(given, real(given, {**FACTORS, DEPTH: 1.0}))
    assert found == pytest.approx(FACTORS, rel=0.02)
    assert fitted([{DEPTH: 0.3}], [0.1]) == {}
    known = Table({DEPTH: [Choice("keep", 0, 0, 0.0), Choice("blocks count=1 first=2", 0, 0, 0.5)]})
    assert parts(known, {DEPTH: 1}) == {DEPTH: 0.5}


# Ranks


def test_ranks_are_of_plans_that_taught_nothing(monkeypatch):
    seen = []
    monkeypatch.setattr(scale, "fitted", lambda others, judged: seen.append((others, judged)) or {})
    given = plans(10)
    scale._rank(given, [float(place) for place in range(10)], 8)
    for place, (others, judged) in enumerate(seen):
        assert given[place] not in others and float(place) not in judged and len(others) == 8


def test_scales_improve_the_rank_where_kinds_differ():
    given = plans(30, seed=5)
    told = scale._rank(given, real(given, {**FACTORS, "svd": 0.1, "ziplm on ffn": 30.0}, noise=0.1), 8)
    assert told["spearman"] > told["unscaled"] + 0.03 and told["spearman"] > 0.9
    assert told["plans"] == 30 and told["sequences"] == 8 and told["real_over_predicted"] == pytest.approx(1, rel=0.2)


def test_ranks_of_equal_plans_are_not_known():
    told = scale._rank([{"svd": 0.1}] * 6, [0.2] * 6, 8)
    assert told["spearman"] is None and told["unscaled"] is None


# Plans to learn from


def table(sites=12):
    """Weights of two options beside keep, every second under a cut of its own; a span; every kind with a factor of its own."""
    found = Table()
    found.choices[DEPTH] = [Choice("keep", 0, 0, 0.0), Choice("blocks count=1 first=2", -1, 0, 0.05)]
    for place in range(sites):
        stays = tuple(choice.option for choice in found.choices[DEPTH])
        name, parent, given = f"w{place}", DEPTH, stays
        if place % 2:
            found.choices[f"c{place}:ffn"] = [Choice("keep", 0, 0, 0.0, given=stays), Choice("ziplm keep=0.5", 0, 0, 0.04, given=stays)]
            found.parents[f"c{place}:ffn"], parent, given = DEPTH, f"c{place}:ffn", ("keep", "ziplm keep=0.5")
        found.parents[name] = parent
        found.choices[name] = [
            Choice("keep", 100, 100, 0.0, given=given),
            Choice("gptq bits=4", 30, 100, 0.001 * (1 + place), given=given),
            Choice("gptq bits=2", 16, 100, 0.02 * (1 + place), given=given),
        ]
    return found


class Truth:
    """A judge by which every kind costs a known multiple."""

    samples, tokens = 4, 16

    def __init__(self, table, factors):
        self.table, self.factors, self.prepared, self.judged, self.asked = table, factors, [], 0, []

    def prepare(self, candidates):
        self.prepared = list(candidates)

    def __call__(self, picks, samples):
        self.judged += 1
        self.asked.append(samples)
        return np.full(samples, sum(self.factors.get(kind, 1.0) * harm for kind, harm in parts(self.table, picks).items()))

    def many(self, candidates, samples):
        return [self(picks, samples) for picks in candidates]


def test_learning_asks_for_all_forms_at_once_and_finds_the_factors():
    known = table()
    judge = Truth(known, {"gptq bits=4": 1.2, "gptq bits=2": 2.0, "ziplm on ffn": 5.0})
    factors, told = learn(known, judge, seed=0)
    assert len(judge.prepared) == judge.judged == told["plans"] == scale.PLANS and told["sequences"] == 4
    assert factors["gptq bits=2"] == pytest.approx(2.0, rel=0.1) and factors["ziplm on ffn"] == pytest.approx(5.0, rel=0.3)
    assert told["spearman"] > 0.95


def test_short_time_means_fewer_sequences_and_then_fewer_plans(monkeypatch):
    known, judge = table(), Truth(table(), {})
    # A second passes with every sequence judged: time for two of each plan, or for none.
    monkeypatch.setattr("modicum.allocate._family.time", SimpleNamespace(monotonic=lambda: float(sum(judge.asked))))
    monkeypatch.setattr(scale, "time", SimpleNamespace(monotonic=lambda: float(sum(judge.asked))))
    _, told = learn(known, judge, seed=0, seconds=140.0)
    assert told["plans"] == scale.PLANS and told["sequences"] == 2
    _, told = learn(known, judge, seed=0, seconds=0.0)
    assert told["plans"] == scale._FOLDS and told["sequences"] == 1


def test_plans_are_gentle_and_mix_all_kinds():
    known = table()
    found = gentle(known, 0)
    assert len(found) == scale.PLANS and all(known.consistent(picks) for picks in found)
    assert all(0 < known.harm(picks) < 1 for picks in found)
    kinds = {kind for picks in found for kind in parts(known, picks)}
    assert kinds >= {"gptq bits=2", "gptq bits=4", "ziplm on ffn"}
    assert found == gentle(known, 0) != gentle(known, 1)
    cut = [sum(known.choices[site][index].option.startswith("ziplm") for site, index in picks.items()) for picks in found]
    assert np.mean(cut) < 0.3 * 6


def test_what_is_kept_or_gone_has_no_part():
    known = Table({"a": [Choice("keep", 1, 1, 0.0), Choice("svd", 1, 1, 0.5)], "b": [Choice(GONE, 0, 0, 0.0)]})
    assert parts(known, {"a": 0, "b": 0}) == {} and parts(known, {"a": 1, "b": 0}) == {"svd": 0.5}
