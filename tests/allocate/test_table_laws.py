"""What every allocator promises, and what tables that hang together do."""

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modicum.allocate import ALLOCATORS
from modicum.core.plan import Choice, Table

# Those that take one limit at a time.
SINGLE = {"dynamic_program"}
# Those that judge many selections: fewer examples.
SEARCHES = ALLOCATORS.keys() & {"auto", "bisection", "evopress", "nsga2", "proxies"}
each_allocator = pytest.mark.parametrize("name", sorted(ALLOCATORS))


def left_behind(table, picks, limits):
    """Sites whose choice could be exchanged for one of less harm that still fits."""
    return [
        site
        for site in table.choices
        if site not in table.children
        for index in table.allowed(site, picks)
        if table.choices[site][index].harm < table.choices[site][picks[site]].harm and table.fits({**picks, site: index}, limits)
    ]


def keeps_its_promises(name, table, limits, selections, judge):
    before, state = copy.deepcopy(table), np.random.get_state()[1].tolist()
    picks = ALLOCATORS[name](table, limits, judge, seed=3)
    assert list(picks) == list(table.choices) and table.consistent(picks)
    assert all(type(index) is int and 0 <= index < len(table.choices[site]) for site, index in picks.items())
    if any(table.fits(other, limits) for other in selections(table)):
        assert table.fits(picks, limits)
        assert not left_behind(table, picks, limits)
    assert ALLOCATORS[name](table, limits, judge, seed=3) == picks
    assert table == before and np.random.get_state()[1].tolist() == state


def keeps_everything(name, table, resources, judge):
    whole = table.best(lambda _, choice: (choice.harm,))
    picks = ALLOCATORS[name](table, {resource: table.cost(whole, resource) for resource in resources}, judge, seed=1)
    assert {table.choices[site][index].option for site, index in picks.items()} == {"keep"}


@pytest.mark.parametrize("name", sorted(ALLOCATORS.keys() - SEARCHES))
@given(data=st.data())
def test_an_allocator_keeps_its_promises(data, name, tables, selections, judge_of):
    table, limits = data.draw(tables(most=1 if name in SINGLE else 3))
    keeps_its_promises(name, table, limits, selections, judge_of(table))


@pytest.mark.parametrize("name", sorted(SEARCHES))
@settings(max_examples=3)
@given(data=st.data())
def test_a_search_keeps_its_promises(data, name, tables, selections, judge_of):
    table, limits = data.draw(tables())
    keeps_its_promises(name, table, limits, selections, judge_of(table))


@pytest.mark.parametrize("name", sorted(ALLOCATORS.keys() - SEARCHES))
@given(data=st.data())
def test_a_budget_of_everything_keeps_everything(data, name, tables, judge_of):
    table, limits = data.draw(tables(most=1 if name in SINGLE else 3, kept=True))
    keeps_everything(name, table, limits, judge_of(table))


@pytest.mark.parametrize("name", sorted(SEARCHES))
@settings(max_examples=2)
@given(data=st.data())
def test_a_search_within_a_budget_of_everything_keeps_everything(data, name, tables, judge_of):
    table, limits = data.draw(tables(kept=True))
    keeps_everything(name, table, limits, judge_of(table))


@each_allocator
def test_what_cannot_fit_gets_the_least(name, judge_of):
    table = Table(
        {"a": [Choice("l", 9, 1, 0.0), Choice("s", 5, 1, 1.0)], "b": [Choice("s", 5, 1, 2.0), Choice("l", 9, 1, 0.0)]}, {"bytes": 3}
    )
    table.facts = {site: {"eigenvalue": 1.0, "trace": 1.0, "weights": 1.0} for site in table.choices}
    table.choices["a"].append(Choice("m", 6, 1, 0.5, distance=1.0))
    assert ALLOCATORS[name](table, {"bytes": 12}, judge_of(table)) == {"a": 1, "b": 0}


@each_allocator
def test_an_empty_table_has_an_empty_selection(name, judge_of):
    table = Table(fixed={"bytes": 7})
    assert ALLOCATORS[name](table, {"bytes": 7}, judge_of(table)) == {}


# Tables


@given(data=st.data())
def test_a_table_comes_back_through_json(data, tables):
    table, _ = data.draw(tables())
    assert Table.from_json(json.loads(json.dumps(table.to_json()))) == table


@given(data=st.data())
def test_the_best_selection_is_that_of_all(data, tables, selections):
    table, limits = data.draw(tables())
    price = lambda site, choice: (choice.bytes, choice.harm)
    total = lambda picks: tuple(sum(part) for part in zip(*(price(site, table.choices[site][index]) for site, index in picks.items())))
    best = table.best(price)
    assert table.consistent(best)
    assert total(best) == pytest.approx(min(total(picks) for picks in selections(table)), abs=1e-9)
    assert table.cost(table.cheapest()) == min(table.cost(picks) for picks in selections(table))


@given(data=st.data())
def test_a_settled_selection_is_consistent_and_stays(data, tables):
    table, _ = data.draw(tables())
    drawn = {site: data.draw(st.integers(0, len(found) - 1)) for site, found in table.choices.items()}
    settled = table.settle(drawn)
    assert table.consistent(settled) and table.settle(settled) == settled
    assert all(settled[site] == index for site, index in drawn.items() if site not in table.parents)
    if table.consistent(drawn):
        assert settled == drawn


@given(data=st.data())
def test_a_selection_is_consistent_where_every_choice_stands(data, tables, selections):
    table, _ = data.draw(tables())
    drawn = {site: data.draw(st.integers(0, len(found) - 1)) for site, found in table.choices.items()}
    assert table.consistent(drawn) == (drawn in list(selections(table)))


def test_the_order_of_a_selection_does_not_change_its_sums():
    table = Table({f"s{i}": [Choice("x", 0, 0, 0.1 * i, seconds=0.1 * i)] for i in range(30)}, {"seconds": 0.3})
    forward = dict.fromkeys(table.choices, 0)
    backward = dict.fromkeys(reversed(table.choices), 0)
    assert table.cost(forward, "seconds") == table.cost(backward, "seconds") and table.harm(forward) == table.harm(backward)
