import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modicum.allocate.dynamic_program import dynamic_program
from modicum.allocate.integer_program import integer_program
from modicum.allocate.uniform import uniform
from modicum.core.errors import SettingError
from modicum.core.plan import Choice, Table


@given(data=st.data())
def test_with_fine_levels_it_tries_all_selections(data, tables, selections):
    # Seconds come in sixteenths, the rest in ones: no two different sums share a level.
    table, limits = data.draw(tables(most=1))
    harms = [table.harm(picks) for picks in selections(table) if table.fits(picks, limits)]
    if harms:
        assert table.harm(dynamic_program(table, limits, levels=20_000)) == pytest.approx(min(harms), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("resource", ["bytes", "values", "memory", "seconds"])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_best_of_a_tree(seed, resource, grown, within, selections):
    table = grown(seed, scale=10**6)
    limits = within(table, 0.1 + 0.2 * seed, resource)
    picks = dynamic_program(table, limits)
    assert table.consistent(picks) and table.fits(picks, limits)
    best = min(table.harm(other) for other in selections(table) if table.fits(other, limits))
    assert table.harm(picks) == pytest.approx(best, rel=1e-9)


def drawn(seed, sites=60, options=8):
    """Sites as quantizers make them, of very different sizes."""
    chance = np.random.default_rng(seed)
    weights, feels = chance.integers(10**4, 10**7, sites), chance.exponential(1.0, sites)
    bits = np.array([2, 2.25, 3, 3.25, 4, 5, 6, 8])[:options]
    menu = lambda n, felt: [Choice(f"int{b}", int(n * b / 8), int(n), float(felt * chance.uniform(0.8, 1.2) * 4.0**-b)) for b in bits]
    return Table({f"s{i}": menu(n, felt) for i, (n, felt) in enumerate(zip(weights, feels))}, {"bytes": 10**6})


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_integer_program_within_the_levels(seed, within):
    table = drawn(seed)
    limits = within(table, 0.1 + 0.15 * seed)
    best = table.harm(integer_program(table, limits))
    harms = {levels: table.harm(dynamic_program(table, limits, levels=levels)) for levels in (200, 4000)}
    assert best * (1 - 1e-6) <= harms[4000] <= best * 1.005
    assert harms[200] <= best * 1.05
    assert harms[4000] < table.harm(uniform(table, limits))


def test_a_limit_holds_to_the_byte():
    half = 500_000_000
    found = [Choice("l", half + 30, 0, 0.0), Choice("m", half, 0, 1.0), Choice("s", 0, 0, 100.0)]
    table = Table({"a": found, "b": found})
    for limit in (2 * half - 1, 2 * half, 2 * half + 30, 2 * half + 59, 2 * half + 60):
        assert table.cost(dynamic_program(table, {"bytes": limit}, levels=7)) <= limit


def test_a_child_to_which_no_choice_matters_is_added_once(monkeypatch):
    # Every option of the depth site touches one block: by halving, log₂ 64 additions per block instead of 64.
    from modicum.allocate.dynamic_program import _Curves

    blocks = [f"b{i}" for i in range(64)]
    table = Table({"depth": [Choice(f"drop {block}", 0, 0, 1.0) for block in blocks]})
    for block in blocks:
        alive = tuple(f"drop {other}" for other in blocks if other != block)
        kept = [Choice("s", 1, 1, 1.0, given=alive), Choice("l", 2, 1, 0.5, given=alive)]
        table.choices[block], table.parents[block] = [*kept, Choice("gone", 0, 0, 0.0, given=(f"drop {block}",))], "depth"
    plus, added = _Curves.plus, []
    monkeypatch.setattr(_Curves, "plus", lambda self, one, other: added.append(1) or plus(self, one, other))
    picks = dynamic_program(table, {"bytes": 63 + 10})
    assert table.harm(picks) == 1.0 + 53 * 1.0 + 10 * 0.5
    assert len(added) < 64 * 6 + 64 + 10


def test_hundreds_of_sites_take_seconds(within):
    table = drawn(0, sites=300)
    start = time.process_time()
    dynamic_program(table, within(table, 0.3))
    assert time.process_time() - start < 5


def test_several_limits_are_refused():
    with pytest.raises(SettingError) as error:
        dynamic_program(drawn(0, 2), {"bytes": 9e9, "memory": 9e9})
    assert str(error.value) == "dynamic_program: must have one limit, came bytes, memory. Use --allocator integer_program."


def test_without_limits_nothing_is_harmed():
    found = [Choice("s", 1, 1, 9.0), Choice("l", 2, 1, 0.0)]
    table = Table({"a": found, "b": found})
    assert dynamic_program(table, {}) == dynamic_program(table, {"bytes": float("inf")}) == {"a": 1, "b": 1}
