import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from modicum.allocate import ALLOCATORS
from modicum.allocate.integer_program import integer_program
from modicum.allocate.proxies import (
    FEWEST,
    FINALISTS,
    HANDMADE,
    NODES,
    PLANS,
    SAMPLES,
    TOGETHER,
    Proxy,
    _evolved,
    drawn,
    evaluated,
    evolve,
    exchanged,
    parts,
    proxies,
    ranked,
    statistics,
    written,
)  # fmt: skip
from modicum.allocate.random import random, spread
from modicum.allocate.uniform import uniform
from modicum.core.errors import SettingError
from modicum.core.plan import Choice, Table


def quantized(seed, sites=24):
    """Sites of random size, range and curvature at five bit widths; the harm knows half of the curvature, and with noise."""
    chance, table = np.random.default_rng([seed, 3]), Table({}, {"bytes": 100})
    for site in (f"site{i}" for i in range(sites)):
        weights, trace, variance = int(chance.choice([400, 800, 1600])), *np.exp(chance.normal(0, [1.2, 0.8])).tolist()
        table.facts[site] = {"trace": trace, "eigenvalue": trace * float(np.exp(chance.normal(1, 0.8))), "weights": float(weights)}
        lost = [weights * variance * 4.0**-bits * float(np.exp(chance.normal(0, 0.15))) for bits in (2, 3, 4, 6, 8)]
        harms = [0.02 * trace**0.5 * distance * float(np.exp(chance.normal(0, 0.5))) for distance in lost]
        table.choices[site] = [
            Choice(f"int{bits}", bits * weights // 8, weights, harm, distance=distance)
            for bits, distance, harm in zip((2, 3, 4, 6, 8), lost, harms)
        ]
    return table


class Law:
    """KL by a law that no hand-made proxy knows: the geometric mean of harm and curvature times change, more in earlier sites."""

    def __init__(self, table, samples=8):
        self.table, self.samples, self.calls, self.sequences = table, samples, 0, 0
        self.values = {
            site: [(choice.harm * table.facts[site]["trace"] * choice.distance) ** 0.5 * (1.6 - 1.2 * place / 24) for choice in found]
            for place, (site, found) in enumerate(table.choices.items())
        }

    def truth(self, picks):
        return sum(self.values[site][index] for site, index in picks.items())

    def __call__(self, picks, samples):
        self.sequences += samples
        return self.truth(picks) * np.linspace(0.8, 1.2, self.samples)[:samples]

    def many(self, candidates, samples):
        self.calls += 1
        return [self(picks, samples) for picks in candidates]


def at(table, limits, count, start=0):
    """Random plans at the limits."""
    return [random(table, limits, seed=start + turn) for turn in range(count)]


# The claims


@pytest.fixture(scope="module")
def held_out(within):
    """Rank correlations on plans that were held out: of the evolved proxy, and of those people made, by table."""
    found = []
    for seed in range(4):
        table = quantized(seed)
        judge, limits = Law(table), within(table, 0.35)
        plans, held = at(table, limits, 48), at(table, limits, 100, start=1000)
        real = [judge.truth(picks) for picks in held]
        rank = lambda proxy, table=table, held=held, real=real: spearmanr(proxy.of(table, held), real).statistic
        evolved = evolve(table, plans, [judge.truth(picks) for picks in plans], seed=seed)
        found.append([rank(evolved), *(rank(Proxy(expression, 0.0)) for expression in HANDMADE)])
    return np.array(found)


def test_the_evolved_proxy_ranks_held_out_plans_better_than_those_people_made(held_out):
    evolved, handmade = held_out[:, :1], held_out[:, 1:]
    assert len(HANDMADE) == handmade.shape[1] and {"harm", "distance", ("*", "trace", "distance")} <= set(HANDMADE)
    assert (evolved.mean() > handmade.mean(0) + 0.03).all()
    assert evolved.mean() > handmade.max(1).mean() and evolved.min() > 0.95


def test_its_plans_are_better_than_the_baselines(within):
    over = {"integer_program": [], "uniform": []}
    for seed in range(6):
        table = quantized(seed)
        limits, judge = within(table, 0.35), Law(table)
        found = judge.truth(proxies(table, limits, judge, seed=seed, generations=25))
        over["integer_program"].append(judge.truth(integer_program(table, limits)) / found)
        over["uniform"].append(judge.truth(uniform(table, limits)) / found)
    assert min(over["integer_program"]) >= 1  # its answer is judged too
    assert np.mean(over["integer_program"]) > 1.03 and np.mean(over["uniform"]) > 1.2


@pytest.mark.parametrize("law", ["harm", ("*", "trace", "distance"), ("sqrt", "harm")])
def test_a_simple_law_is_found_again(law, within):
    table = quantized(7)
    plans = spread(table, 20, 0) + at(table, within(table, 0.4), 20)
    proxy = evolve(table, plans, Proxy(law, 1.0).of(table, plans), seed=1, generations=20)
    held = at(table, within(table, 0.3), 40, start=99)
    assert proxy.correlation > 0.99 and spearmanr(proxy.of(table, held), Proxy(law, 1.0).of(table, held)).statistic > 0.98


# The allocator


def test_judgements_are_counted(within):
    table = quantized(0, sites=8)
    judge = Law(table, samples=12)
    proxies(table, within(table, 0.4), judge, seed=0, generations=2)
    assert 0 < judge.sequences <= SAMPLES * PLANS + 12 * (FINALISTS + 1)


def test_time_ends_judging_but_not_before_there_is_enough(within, monkeypatch):
    # A clock that only judging moves.
    table = quantized(0, sites=8)
    limits, calls = within(table, 0.4), {}
    for seconds in (1.0, 7.0):
        judge = Law(table)
        monkeypatch.setattr(sys.modules[proxies.__module__], "time", SimpleNamespace(monotonic=lambda judge=judge: float(judge.calls)))
        proxies(table, limits, judge, seed=0, seconds=seconds, generations=1)
        calls[seconds] = judge.calls
    assert calls == {1.0: -(-FEWEST // TOGETHER) + 1, 7.0: 4 + 1}  # and one call for the answers


def test_a_plan_that_was_lost_is_passed_over(within):
    table = quantized(1, sites=10)
    limits, judge = within(table, 0.4), Law(table)
    outcomes = judge.many
    judge.many = lambda candidates, samples: [np.full(samples, np.inf), *outcomes(candidates[1:], samples)]
    assert table.fits(proxies(table, limits, judge, seed=0, generations=2), limits)


def test_plans_that_cannot_be_told_apart_leave_the_integer_programs_answer(within):
    table = quantized(2, sites=6)
    limits, judge = within(table, 0.4), Law(table)
    judge.truth = lambda picks: 1.0
    assert proxies(table, limits, judge, seed=0) == integer_program(table, limits)


def test_it_is_found_by_its_name_and_needs_a_judge():
    assert ALLOCATORS["proxies"] is proxies
    with pytest.raises(SettingError, match="proxies: must judge selections by their real divergence, no judge was given"):
        proxies(quantized(0), {"bytes": 5000})


# Evolution


def test_the_same_seed_evolves_the_same_and_another_another(within):
    table = quantized(3, sites=10)
    plans = at(table, within(table, 0.4), 24)
    real = [Law(table).truth(picks) for picks in plans]
    one, again, *others = (evolve(table, plans, real, seed=seed, generations=5) for seed in (0, 0, 1, 2, 3))
    assert one == again and any(one != other for other in others)  # two seeds may come to the same


def test_more_generations_are_never_less_fit_and_survivors_differ(within):
    table = quantized(4, sites=10)
    plans = at(table, within(table, 0.4), 24)
    real = np.array([Law(table).truth(picks) for picks in plans])
    populations = [_evolved(table, plans, real, 0, generations, np.zeros(24, dtype=int)) for generations in (0, 3, 12)]
    fitness = lambda proxy: proxy.correlation - 0.001 * len(list(parts(proxy.expression)))
    best = [max(map(fitness, population)) for population in populations]
    assert best == sorted(best) and best[-1] > best[0]
    ranks = np.array([rankdata((values / np.abs(values).max()).round(10)) for values in (p.of(table, plans) for p in populations[-1])])
    assert [proxy.correlation for proxy in populations[-1]] == pytest.approx([spearmanr(found, real).statistic for found in ranks])
    alike = np.corrcoef(ranks) - np.eye(len(ranks))
    assert alike.max() < 0.9996 and all(len(list(parts(proxy.expression))) <= NODES for proxy in populations[-1])


def test_groups_are_ranked_each_for_itself(within):
    table = quantized(5, sites=10)
    plans, groups = at(table, within(table, 0.3), 20) + at(table, within(table, 0.6), 20), np.repeat([0, 1], 20)
    real = np.array([Law(table).truth(picks) for picks in plans])
    for proxy in _evolved(table, plans, real, 0, 1, groups)[:5]:
        found = [spearmanr(proxy.of(table, plans)[groups == group], real[groups == group]).statistic for group in (0, 1)]
        assert proxy.correlation == pytest.approx(np.mean(found))


@pytest.mark.parametrize("real", [[1.0] * 6, [1.0, 2.0, np.inf, np.inf, 1.0, 2.0], []])
def test_too_little_to_learn_from_is_refused(real):
    table = quantized(0, sites=3)
    with pytest.raises(
        SettingError, match=f"proxy: must have at least three plans that differ and whose divergences do, has {len(real)}. "
    ):
        evolve(table, spread(table, 6, 0)[: len(real)], real)


# Expressions


@given(values=st.lists(st.integers(0, 6), min_size=1, max_size=20))
def test_ranks_are_averaged_over_equals(values):
    assert ranked(np.array(values)).tolist() == rankdata(values).tolist()


def test_statistics_are_of_choices_and_of_their_sites():
    table = quantized(0, sites=3)
    found = statistics(table)
    assert set(found) == {"harm", "distance", "bytes", "values", "position", "trace", "eigenvalue", "weights"}
    assert all(len(values) == 15 and np.abs(values).mean() == pytest.approx(1) for values in found.values())
    assert found["position"][[0, 4, 5, 14]] == pytest.approx([0.5, 0.5, 1.0, 1.5])
    table.facts = {site: {"weights": 1.0} for site in table.choices}
    assert "trace" not in statistics(table)
    with pytest.raises(SettingError, match=r"proxy: the table must have trace, has harm, .* Measure with --curvature"):
        Proxy(("*", "trace", "distance"), 0.9).of(table, spread(table, 2))


@pytest.mark.parametrize(
    "expression, text",
    [
        ("harm", "harm"),
        (("*", "trace", ("+", "harm", "distance")), "trace * (harm + distance)"),
        (("/", ("sqrt", ("*", "harm", "trace")), ("+", "position", "bytes")), "sqrt(harm * trace) / (1 + abs(position + bytes))"),
        (("max", "harm", ("-", "bytes", ("square", "values"))), "max(harm, bytes - square(values))"),
        (("+", ("log1p", "harm"), ("/", "harm", "bytes")), "log1p(harm) + (harm / (1 + abs(bytes)))"),
    ],
)
def test_an_expression_reads_as_formulas_do(expression, text):
    assert str(Proxy(expression, 0.5)) == text


@given(seed=st.integers(0, 10_000))
def test_what_is_written_is_what_is_computed(seed):
    chance, known = np.random.default_rng(seed), {"harm": np.array([0.0, 0.5, 2.0]), "bytes": np.array([3.0, 1.0, 0.2])}
    expression = drawn(list(known), chance)
    functions = {"sqrt": lambda x: np.sqrt(np.abs(x)), "square": np.square, "log1p": lambda x: np.log1p(np.abs(x))}
    value = eval(written(expression), {"max": np.maximum, "min": np.minimum, "abs": np.abs, **functions, **known})  # noqa: S307
    assert evaluated(expression, known) == pytest.approx(value)


@given(seed=st.integers(0, 1000))
def test_a_part_is_exchanged_in_its_place(seed):
    chance = np.random.default_rng(seed)
    expression = drawn(["harm", "bytes"], chance)
    for path, part in parts(expression):
        assert exchanged(expression, path, part) == expression
        changed = exchanged(expression, path, "new")
        assert dict(parts(changed))[path] == "new"
        beside = {way: found for way, found in parts(expression) if way[: len(path)] != path and path[: len(way)] != way}
        assert beside.items() <= dict(parts(changed)).items()


def test_the_priced_table_has_the_proxy_for_harm():
    table = quantized(0, sites=4)
    proxy = Proxy(("*", "harm", "position"), 1.0)
    (picks,) = spread(table, 1, 0)
    assert proxy.priced(table).harm(picks) == pytest.approx(proxy.of(table, [picks])[0])
    assert proxy.priced(table).cost(picks) == table.cost(picks)
