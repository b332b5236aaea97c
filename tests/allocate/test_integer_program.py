import itertools
import os
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modicum.allocate._family import fill, floor, near
from modicum.allocate._program import _quiet
from modicum.allocate.integer_program import integer_program
from modicum.allocate.uniform import uniform
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
    table = Table(choices, {"bytes": int(chance.integers(0, 500))})
    cheapest = table.cost(table.cheapest())
    largest = table.fixed["bytes"] + sum(max(c.bytes for c in found) for found in choices.values())
    return table, {"bytes": int(chance.integers(cheapest, largest + 1))}


@pytest.fixture
def best(selections):
    """Least summed harm of all selections that fit, by trying all."""
    return lambda table, limits: min(table.harm(picks) for picks in selections(table) if table.fits(picks, limits))


@pytest.mark.parametrize("seed", range(25))
def test_the_selection_is_the_best_there_is(seed, best):
    table, limits = drawn(seed)
    picks = integer_program(table, limits)
    assert table.fits(picks, limits)
    assert table.harm(picks) == pytest.approx(best(table, limits), rel=1e-5)
    assert table.harm(picks) <= table.harm(uniform(table, limits)) * (1 + 1e-5)


@given(data=st.data())
def test_the_selection_is_the_best_of_any_table(data, tables, selections):
    table, limits = data.draw(tables())
    harms = [table.harm(picks) for picks in selections(table) if table.fits(picks, limits)]
    if harms:
        assert table.harm(integer_program(table, limits)) == pytest.approx(min(harms), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("resources", [("bytes",), ("bytes", "memory"), ("values", "memory", "seconds")])
def test_the_selection_is_the_best_of_a_tree(seed, resources, grown, within, best):
    # The sizes of real models: the solver's tolerance is a share of the limit, which then is many bytes.
    table = grown(seed, scale=10**6)
    limits = within(table, 0.05 + 0.12 * seed, *resources)
    picks = integer_program(table, limits)
    assert table.consistent(picks) and table.fits(picks, limits)
    assert table.harm(picks) == pytest.approx(best(table, limits), rel=1e-5)


def test_it_beats_the_uniform_choice_where_sites_differ():
    # The first site in layer order is the least sensitive, which the baseline cannot know.
    choices = {name: [Choice("int2", 20, 80, 4 * s), Choice("int4", 40, 80, s)] for name, s in (("a", 0.01), ("b", 1.0), ("c", 1.0))}
    table, limits = Table(choices), {"bytes": 100}
    assert table.harm(integer_program(table, limits)) < 0.5 * table.harm(uniform(table, limits))


def test_it_drops_a_block_rather_than_round_all_to_two_bits(grown, within):
    table = grown(0)
    table.choices["depth"] = [Choice("keep", 0, 0, 0.0), Choice("drop b0", 0, 0, 1e-6), Choice("drop b1", 0, 0, 9.0)]
    picks = integer_program(table, within(table, 0.3))
    assert picks["depth"] == 1 and table.choices["b0.cut"][picks["b0.cut"]].option == "gone"
    assert {table.choices[site][picks[site]].option for site in ("b0.up", "b0.down")} == {"gone"}


@pytest.mark.parametrize("seed", range(10))
def test_a_looser_budget_is_never_worse(seed):
    table, _ = drawn(seed, sites=8)
    least = table.cost(table.cheapest())
    harms = [table.harm(integer_program(table, {"bytes": least + room})) for room in (0, 50, 100, 200, 400, 800)]
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in itertools.pairwise(harms))


def test_a_second_limit_takes_away():
    # Of what is small on disk some is large in memory.
    found = [Choice("packed", 10, 80, 1.0, memory=80), Choice("kept", 40, 80, 0.0, memory=40), Choice("cut", 20, 40, 3.0, memory=20)]
    table = Table({"a": found, "b": found})
    assert integer_program(table, {"bytes": 50}) in ({"a": 0, "b": 1}, {"a": 1, "b": 0})
    assert integer_program(table, {"bytes": 60, "memory": 60}) in ({"a": 2, "b": 1}, {"a": 1, "b": 2})
    assert integer_program(table, {"bytes": 40, "memory": 40}) == {"a": 2, "b": 2}


def test_what_fits_is_found_where_no_greedy_choice_does():
    # The least sum of shares breaks the first limit; only one selection keeps both.
    found = [Choice("x", 9, 0, 1.0, memory=1), Choice("y", 6, 0, 1.0, memory=5), Choice("z", 1, 0, 1.0, memory=10)]
    table = Table({"a": found, "b": found})
    assert integer_program(table, {"bytes": 12, "memory": 10}) == {"a": 1, "b": 1}


def test_at_the_floor_it_is_the_cheapest():
    found = [Choice("s", 1, 1, 9.0), Choice("l", 2, 1, 0.0)]
    assert integer_program(Table({"a": found, "b": found}, {"bytes": 3}), {"bytes": 5}) == {"a": 0, "b": 0}


def test_without_limits_nothing_is_harmed():
    found = [Choice("s", 1, 1, 9.0), Choice("l", 2, 1, 0.0)]
    assert integer_program(Table({"a": found, "b": found}), {}) == {"a": 1, "b": 1}
    assert integer_program(Table({"a": found, "b": found}), {"bytes": float("inf")}) == {"a": 1, "b": 1}


@pytest.mark.parametrize("spread", [1e6, 1e9])
def test_one_ruinous_choice_does_not_blunt_the_others(spread, best):
    for seed in range(8):
        table, limits = drawn(seed, spread=spread)
        assert table.harm(integer_program(table, limits)) == pytest.approx(best(table, limits), rel=1e-4)


def test_a_ruinous_start_does_not_blunt_the_others(grown, within, best):
    # Nothing but a search over structure leaves the selection that spends least, which drops a block at the price of the whole model.
    table = grown(1)
    table.choices["depth"] = [Choice(c.option, 0, 0, 1e7 * c.harm) for c in table.choices["depth"]]
    limits = within(table, 0.5)
    assert table.harm(integer_program(table, limits)) == pytest.approx(best(table, limits), rel=1e-5)


def test_harms_below_zero_are_minimised_too(best):
    for seed in range(8):
        table, limits = drawn(seed)
        lowered = {site: [Choice(c.option, c.bytes, c.values, c.harm - 2.0) for c in found] for site, found in table.choices.items()}
        table = Table(lowered, table.fixed)
        assert table.harm(integer_program(table, limits)) == pytest.approx(best(table, limits), rel=1e-5, abs=1e-5)


def test_hundreds_of_sites_take_seconds():
    table, _ = drawn(0, sites=300, options=12)
    limits = {"bytes": 1.5 * table.cost(table.cheapest())}
    start = time.process_time()
    assert table.fits(integer_program(table, limits), limits)
    assert time.process_time() - start < 5


def test_its_time_is_bounded():
    table, _ = drawn(1, sites=300, options=12)
    limits = {"bytes": 1.3 * table.cost(table.cheapest())}
    start = time.process_time()
    assert table.fits(integer_program(table, limits, seconds=0.01), limits)
    assert time.process_time() - start < 3


def test_a_ruinous_option_without_number_is_left_out():
    found = [Choice("broken", 1, 0, float("inf")), Choice("s", 2, 0, 1.0), Choice("l", 4, 0, 0.0)]
    table = Table({"a": found, "b": found})
    assert integer_program(table, {"bytes": 6}) in ({"a": 1, "b": 2}, {"a": 2, "b": 1})
    assert table.harm(integer_program(table, {"bytes": 5})) == 2.0


def test_a_limit_holds_to_the_byte_and_is_used_to_it():
    half = 500_000_000
    found = [Choice("l", half + 30, 0, 0.0), Choice("m", half, 0, 1.0), Choice("s", 0, 0, 100.0)]
    table = Table({"a": found, "b": found})
    assert integer_program(table, {"bytes": 2 * half}) == {"a": 1, "b": 1}
    assert table.harm(integer_program(table, {"bytes": 2 * half + 30})) == 1.0


def test_the_solver_says_nothing(capfd):
    with _quiet():
        os.write(1, b"noise")
    assert capfd.readouterr() == ("", "")
    os.write(1, b"words")
    assert capfd.readouterr() == ("words", "")


def test_it_starts_near_the_least_whatever_the_cheapest_structure_is():
    """Under the structure that spends least nothing is good; what bytes are worth by the linear program tells a better one."""
    chance = np.random.default_rng(0)
    sizes = {f"s{place}": float(np.exp(chance.normal())) for place in range(30)}
    table = Table({"depth": [Choice("keep", 0, 0, 0.0), Choice("drop", 0, 0, 50.0)]})
    for name, size in sizes.items():
        table.parents[name] = "depth"
        table.choices[name] = [Choice(f"int{bits}", 100 * bits, 1, size * 4.0**-bits, given=("keep",)) for bits in (2, 3, 4, 6, 8)]
        table.choices[name].append(Choice("gone", 0, 0, 0.0, given=("drop",)))
    limits = {"bytes": 30 * 100 * 4}
    start, least = near(table, limits), integer_program(table, limits)
    assert table.fits(start, limits) and start["depth"] == least["depth"] == 0
    assert table.harm(least) <= table.harm(start) <= 1.05 * table.harm(least)
    assert table.harm(fill(table, floor(table, limits), limits)) == 50.0
