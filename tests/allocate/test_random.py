import pytest

from modicum.allocate.integer_program import integer_program
from modicum.allocate.random import random, spread
from modicum.core.plan import Choice, Table


def test_seeds_differ_and_one_seed_does_not(grown, within):
    table = grown(0)
    limits = within(table, 0.25)
    met = [random(table, limits, seed=seed) for seed in range(20)]
    assert met == [random(table, limits, seed=seed) for seed in range(20)]
    assert len({tuple(picks.items()) for picks in met}) > 10
    assert all(table.fits(picks, limits) and table.consistent(picks) for picks in met)


@pytest.mark.parametrize("resources", [("bytes",), ("bytes", "memory", "seconds")])
def test_structure_is_drawn_too(resources, grown, within):
    table = grown(1)
    met = [random(table, within(table, 0.5, *resources), seed=seed) for seed in range(30)]
    assert {picks["depth"] for picks in met} == {0, 1, 2}
    assert len({(picks["b0.cut"], picks["b1.cut"]) for picks in met}) > 5


def test_every_choice_that_can_be_is_met():
    found = [Choice("s", 1, 0, 4.0), Choice("m", 2, 0, 1.0), Choice("l", 3, 0, 0.0)]
    table = Table({site: found for site in "abc"})
    met = {tuple(random(table, {"bytes": 6}, seed=seed).values()) for seed in range(200)}
    # All that spend six bytes: nothing is left to upgrade with, whatever the order of the draws.
    assert met == {(a, b, 3 - a - b) for a in range(3) for b in range(3) if 0 <= 3 - a - b <= 2}


def test_it_is_what_a_better_allocator_beats(grown, within):
    for seed in range(5):
        table = grown(seed)
        limits = within(table, 0.4)
        harms = [table.harm(random(table, limits, seed=draw)) for draw in range(10)]
        assert table.harm(integer_program(table, limits)) <= min(harms) < max(harms)


def test_selections_are_spread_over_the_sizes(grown):
    table = grown(2)
    met = spread(table, 30, seed=5)
    assert met == spread(table, 30, seed=5) != spread(table, 30, seed=6)
    assert len(met) == 30 and all(table.consistent(picks) for picks in met)
    costs = [table.cost(picks) for picks in met]
    least, most = table.cost(table.cheapest()), table.cost(table.best(lambda _, choice: (choice.harm,)))
    assert all(least <= cost <= most for cost in costs)
    # One limit from each thirtieth of the range, and nearly all of it spent.
    limits = [least + (most - least) * (place + 1) / 30 for place in range(30)]
    assert all(cost <= limit for cost, limit in zip(costs, limits))
    assert sum(cost > limit - 0.2 * (most - least) for cost, limit in zip(costs, limits)) >= 25
    assert spread(table, 0) == []


def test_selections_can_be_spread_over_another_resource(grown):
    table = grown(3)
    costs = [table.cost(picks, "seconds") for picks in spread(table, 12, resource="seconds")]
    assert costs[0] < 0.4 * costs[-1]
