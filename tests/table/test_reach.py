"""What a budget of bytes has no use for is not measured, and whatever it needs stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modicum.core.budget import Budget
from modicum.core.option import KEEP, Option
from modicum.core.plan import Choice, Table
from modicum.fit.request import Request
from modicum.fit.scene import Scene
from modicum.table.menu import offered
from modicum.table.reach import far_below
from modicum.testing import zoo

WEIGHTS = 1000


def table(*sites, fixed=500):
    """Sites of so many weights whose options take so many bits each, beside the weights as they are."""
    choices = lambda bits: [Choice(f"bits={one}" if one < 16 else KEEP, one * WEIGHTS // 8, WEIGHTS, 0.0) for one in (16, *bits)]
    return Table({f"site {place}": choices(bits) for place, bits in enumerate(sites)}, {"bytes": fixed})


def budget(bits, sites, fixed=500):
    return fixed + sites * bits * WEIGHTS // 8


def test_far_fewer_bits_than_are_paid_for_are_left_out():
    wide = table((2, 3, 4, 5, 8), (2, 3, 4, 5, 8))
    assert far_below(wide, budget(8, 2)) == {"bits=2", "bits=3", "bits=4"}
    assert far_below(wide, budget(5, 2)) == {"bits=2"}
    assert far_below(wide, budget(4, 2)) == set()
    assert far_below(wide, budget(13, 2)) == {"bits=2", "bits=3", "bits=4", "bits=5"}  # the most that is not above it stays


def test_what_has_one_choice_is_paid_first():
    fixed = table((2, 3, 8), ())  # the second site stays as it is, at 16 bits
    assert far_below(fixed, budget(8, 2)) == set()
    assert far_below(fixed, budget(11, 2)) == {"bits=2"}


def test_all_stay_where_the_rest_does_not_fit():
    assert far_below(table((1,), (2,)), budget(5, 2)) == set()  # nothing but the smallest fits
    assert far_below(table((2, 8), (2,)), budget(9, 2)) == set()


def test_what_cannot_stay_as_it_is_keeps_what_a_budget_needs():
    one, other = table((2, 4, 8), (2, 4, 8)).choices.values()
    forced = Table({"free": one, "forced": other[1:]}, {"bytes": 500})  # as experts are beside a layer that none of their grids fits
    assert far_below(forced, budget(6, 2)) == set()  # without few bits it would take 8 for each
    assert far_below(forced, budget(8, 2)) == {"bits=2", "bits=4"}


@given(
    st.lists(st.tuples(st.lists(st.integers(1, 15), min_size=1, max_size=5, unique=True), st.booleans()), min_size=1, max_size=5),
    st.integers(1, 16),
)
def test_a_budget_within_reach_stays_within_reach(sites, bits):
    whole, most = table(*(found for found, _ in sites)), budget(bits, len(sites))
    whole = Table({name: choices if free else choices[1:] for (name, choices), (_, free) in zip(whole.choices.items(), sites)}, whole.fixed)
    left_out = far_below(whole, most)
    rest = [[one for one in choices if one.option not in left_out] for choices in whole.choices.values()]
    least = lambda choices: sum(min(one.bytes for one in found) for found in choices)
    assert KEEP not in left_out and all(rest)
    assert least(rest) <= most - whole.fixed["bytes"] or least(rest) == least(whole.choices.values())


def left_out(**settings):
    model, batches = zoo.build("llama")
    scene = Scene.open(model, Request(target="modicum", **settings), batches)
    named = {text for site in scene.sites for text in offered(scene.target, site, scene.menu)}
    whole = {text for site in scene.sites for text in offered(scene.target, site, scene.menu.leaving_out(frozenset()))}
    return whole - named, scene


def test_a_direct_fit_does_not_measure_them_and_says_so():
    gone, scene = left_out(budget=Budget(bpw=10))
    assert {"gptq bits=2", "watersic rate=2.0"} <= gone and "gptq bits=8" not in gone
    assert [note for note in scene.model.notes if "far fewer bits" in note]


@pytest.mark.parametrize(
    "settings",
    [
        {"budget": Budget(bpw=12, speed=1.5)},  # what is small may be wanted for something else
        {"budget": Budget(params=0.9)},
        {"budget": Budget(bpw=12), "menu": (Option.parse("gptq bits=2"), Option.parse("gptq bits=8"))},
        {"budget": Budget(bpw=12), "dry_run": True},  # says what is within reach
        {"method": Option.parse("gptq bits=2")},
    ],
    ids=["and speed", "values", "a menu", "dry run", "a method"],
)
def test_elsewhere_nothing_is_left_out(settings):
    gone, scene = left_out(**settings)
    assert gone == set() and not [note for note in scene.model.notes if "far fewer" in note]
