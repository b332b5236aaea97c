import itertools

import numpy as np
import pytest

from modicum.allocate import integer_program, uniform
from modicum.core.plan import Choice, Table


def drawn(seed, sites=5, options=4, spread=1.0):
    """A random table, harms falling with bytes but for noise; ``spread`` is the largest harm's order of magnitude over the others'."""
    chance = np.random.default_rng(seed)
    choices = {}
    for site in range(sites):
        sizes = np.sort(chance.integers(10, 400, options))
        harms = chance.exponential(1.0, options) * 400.0 / sizes
        choices[f"site{site}"] = [Choice(f"o{i}", int(b), int(b), float(h)) for i, (b, h) in enumerate(zip(sizes, harms))]
    first = choices["site0"][0]
    choices["site0"][0] = Choice(first.option, first.bytes, first.values, first.harm * spread)
    table = Table(choices, fixed=int(chance.integers(0, 500)))
    cheapest = table.cost(table.cheapest())
    largest = table.fixed + sum(max(c.bytes for c in found) for found in choices.values())
    return table, int(chance.integers(cheapest, largest + 1))


def best(table, budget):
    """Least summed harm of all selections that fit, by trying all."""
    selections = itertools.product(*(range(len(found)) for found in table.choices.values()))
    return min(table.harm(p) for p in (dict(zip(table.choices, s)) for s in selections) if table.cost(p) <= budget)


@pytest.mark.parametrize("seed", range(25))
def test_the_selection_is_the_best_there_is(seed):
    table, budget = drawn(seed)
    picks = integer_program(table, budget)
    assert table.cost(picks) <= budget
    assert table.harm(picks) == pytest.approx(best(table, budget), rel=1e-5)
    assert table.harm(picks) <= table.harm(uniform(table, budget)) * (1 + 1e-5)


def test_it_beats_the_uniform_choice_where_sites_differ():
    # The first site in layer order is the least sensitive, which the baseline cannot know.
    choices = {name: [Choice("int2", 20, 80, 4 * s), Choice("int4", 40, 80, s)] for name, s in (("a", 0.01), ("b", 1.0), ("c", 1.0))}
    table = Table(choices)
    assert table.harm(integer_program(table, 100)) < 0.5 * table.harm(uniform(table, 100))


@pytest.mark.parametrize("seed", range(10))
def test_a_looser_budget_is_never_worse(seed):
    table, _ = drawn(seed, sites=8)
    floor = table.cost(table.cheapest())
    harms = [table.harm(integer_program(table, floor + room)) for room in (0, 50, 100, 200, 400, 800)]
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in itertools.pairwise(harms))


def test_at_the_floor_it_is_the_cheapest():
    table = Table({"a": [Choice("s", 1, 1, 9.0), Choice("l", 2, 1, 0.0)], "b": [Choice("s", 1, 1, 5.0), Choice("l", 2, 1, 0.0)]}, fixed=3)
    assert integer_program(table, 5) == {"a": 0, "b": 0}


def test_an_empty_table_has_an_empty_selection():
    assert integer_program(Table(fixed=7), 7) == {}


@pytest.mark.parametrize("spread", [1e6, 1e9])
def test_one_ruinous_choice_does_not_blunt_the_others(spread):
    for seed in range(8):
        table, budget = drawn(seed, spread=spread)
        assert table.harm(integer_program(table, budget)) == pytest.approx(best(table, budget), rel=1e-4)
