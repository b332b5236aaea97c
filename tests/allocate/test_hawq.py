import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modicum.allocate.hawq import _descent, hawq
from modicum.allocate.uniform import uniform
from modicum.core.errors import SettingError
from modicum.core.plan import Choice, Table

LEVELS = ((2, 16.0), (3, 4.0), (4, 1.0), (8, 0.01))


def table(bends, weights=None, levels=LEVELS):
    """Sites by name and eigenvalue, 80 weights each; no harm is measured, so that nothing but the order decides."""
    weights = weights or dict.fromkeys(bends, 80)
    found = {site: [Choice(f"int{bits}", bits * n // 8, n, 0.0, n * bits, distance=d) for bits, d in levels] for site, n in weights.items()}
    return Table(found, {"bytes": 5}, facts={s: {"eigenvalue": bends[s], "weights": float(weights[s])} for s in bends})


def bits(made, picks):
    return {site: int(made.choices[site][index].option.removeprefix("int")) for site, index in picks.items()}


def test_the_higher_eigenvalue_gets_more_bits():
    made = table({"a": 1.0, "b": 900.0, "c": 30.0, "d": 0.1})
    assert bits(made, hawq(made, {"bytes": 5 + 10 * (2 + 2 + 4 + 8)})) == {"b": 8, "c": 4, "a": 2, "d": 2}


def test_eigenvalues_count_per_weight():
    made = table({"a": 10.0, "b": 9.0}, {"a": 800, "b": 80})
    assert bits(made, hawq(made, {"bytes": 5 + 200 + 80})) == {"a": 2, "b": 8}


@pytest.mark.parametrize("limited", [("bytes",), ("bytes", "memory")])
@pytest.mark.parametrize("seed", range(12))
def test_the_split_is_the_best_of_all_that_fall(seed, limited):
    chance = np.random.default_rng(seed)
    bends = {f"s{i}": float(chance.exponential()) for i in range(6)}
    made = table(bends)
    # Changes of their own: without the order, some site would get more than one that bends more.
    for site, found in made.choices.items():
        made.choices[site] = [replace(choice, distance=float(choice.distance * chance.exponential())) for choice in found]
    limits = {"bytes": 5 + 10 * int(chance.integers(12, 40)), "memory": 80 * int(chance.integers(12, 40))}
    limits = {resource: limits[resource] for resource in limited}
    order = sorted(bends, key=lambda site: -bends[site])
    weigh = lambda picks: sum(bends[site] * made.choices[site][index].distance for site, index in picks.items())
    falling = [dict(zip(order, found[::-1])) for found in itertools.combinations_with_replacement(range(4), 6)]
    picks = hawq(made, limits)
    assert weigh(picks) == pytest.approx(min(weigh(other) for other in falling if made.fits(other, limits)), rel=1e-5)
    assert all(picks[after] <= picks[before] for before, after in itertools.pairwise(order))


def test_without_changes_the_split_that_spends_most():
    made = table({f"s{i}": 2.0**-i for i in range(5)}, levels=[(2, 0.0), (3, 0.0), (8, 0.0)])
    for budget in range(100, 400, 17):
        spent = [sum(10 * (2, 3, 8)[i] for i in found) for found in itertools.combinations_with_replacement(range(3), 5)]
        assert made.cost(hawq(made, {"bytes": 5 + budget})) - 5 == max(total for total in spent if total <= budget)


@given(data=st.data())
def test_descending_levels_are_the_cheapest(data):
    prices = np.array(data.draw(st.lists(st.lists(st.integers(0, 20), min_size=3, max_size=3), min_size=1, max_size=4)), dtype=float)
    falling = [found for found in itertools.product(range(3), repeat=len(prices)) if list(found) == sorted(found)]
    total = lambda levels: sum(row[level] for row, level in zip(prices, levels))
    levels = _descent(prices)
    assert tuple(levels) in falling and total(levels) == min(map(total, falling))


def test_a_site_without_a_level_takes_what_it_has():
    made = table({"a": 9.0, "b": 3.0, "c": 1.0})
    made.choices["b"] = [Choice("int3", 30, 80, 0.0, distance=4.0), Choice("int6", 60, 80, 0.0, distance=0.05)]
    assert bits(made, hawq(made, {"bytes": 5 + 20 + 30 + 20})) == {"a": 2, "b": 3, "c": 2}
    assert bits(made, hawq(made, {"bytes": 5 + 80 + 60 + 80})) == {"a": 8, "b": 6, "c": 8}


def test_at_one_level_it_is_uniform():
    made = table({"a": 9.0, "b": 3.0}, levels=LEVELS[1:2])
    assert hawq(made, {"bytes": 999}) == uniform(made, {"bytes": 999}) == {"a": 0, "b": 0}


@pytest.mark.parametrize("seed", range(5))
def test_it_beats_one_width_everywhere_where_curvature_differs(seed, quadratic):
    chance = np.random.default_rng(seed)
    bent = quadratic({f"s{i}": np.exp(chance.normal(0, 0.5, 64)) * 10.0 ** chance.uniform(-3, 1) for i in range(8)}, seed)
    limits = {"bytes": 8 * 8 * 3}
    assert bent.rise(hawq(bent.table, limits)) < 0.7 * bent.rise(uniform(bent.table, limits))


@pytest.mark.parametrize("share, whole", [(0.9, True), (0.3, True), (0.02, False)])
def test_structure_stays_whole_unless_nothing_fits(share, whole, grown, within):
    for seed in range(4):
        made = grown(seed)
        limits = within(made, share, "bytes", "memory")
        picks = hawq(made, limits)
        assert made.fits(picks, limits) and made.consistent(picks)
        assert all(picks[site] == 0 for site in made.children) == whole


def test_missing_eigenvalues_are_told():
    made = table({"a": 9.0, "b": 3.0})
    made.facts = {}
    with pytest.raises(SettingError) as error:
        hawq(made, {"bytes": 99})
    assert str(error.value) == "hawq: must have the sites' top Hessian eigenvalues, the table holds none. Measure with --curvature."
    made.choices = {site: found[:1] for site, found in made.choices.items()}
    assert hawq(made, {"bytes": 99}) == {"a": 0, "b": 0}
