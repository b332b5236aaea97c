import pytest
from hypothesis import given
from hypothesis import strategies as st

from modicum.allocate import ALLOCATORS, uniform
from modicum.allocate._family import fill
from modicum.core.plan import Choice, Table


def table(sites, menu=((2, 8.0), (4, 1.0), (8, 0.1)), fixed=100):
    """A table of sites by name and number of weights; each option costs its bits per weight and harms in proportion to the weights."""
    found = {
        name: [Choice(f"int{bits}", bits * values // 8, values, harm * values / 1000) for bits, harm in menu]
        for name, values in sites.items()
    }
    return Table(found, fixed)


def texts(table, picks):
    return {site: table.choices[site][index].option for site, index in picks.items()}


@st.composite
def tables(draw):
    """Tables of a few sites with a few choices each, and a budget that the cheapest selection meets."""
    choice = st.builds(
        Choice, st.text("abc", max_size=2), st.integers(1, 60), st.integers(1, 60), st.floats(0, 9).map(lambda x: round(x, 3))
    )
    sites = draw(st.lists(st.lists(choice, min_size=1, max_size=4), min_size=1, max_size=4))
    made = Table({f"site{i}": found for i, found in enumerate(sites)}, draw(st.integers(0, 50)))
    return made, made.cost(made.cheapest()) + draw(st.integers(0, 120))


@given(tables(), st.sampled_from(sorted(ALLOCATORS)))
def test_every_allocator_fits_and_leaves_no_upgrade_behind(case, name):
    made, budget = case
    picks = ALLOCATORS[name](made, budget, None)
    assert picks.keys() == made.choices.keys() and made.cost(picks) <= budget
    for site, found in made.choices.items():
        now = found[picks[site]]
        assert not any(c.harm < now.harm and made.cost(picks) + c.bytes - now.bytes <= budget for c in found)


@given(tables())
def test_fill_never_harms_and_keeps_what_it_was_given(case):
    made, budget = case
    start = made.cheapest()
    before = dict(start)
    picks = fill(made, start, budget)
    assert start == before and made.harm(picks) <= made.harm(start)


def test_fill_takes_the_largest_drop_per_byte_first():
    made = Table({"a": [Choice("s", 10, 1, 4.0), Choice("l", 20, 1, 0.0)], "b": [Choice("s", 10, 1, 3.0), Choice("l", 12, 1, 1.0)]})
    assert texts(made, fill(made, {"a": 0, "b": 0}, 25)) == {"a": "s", "b": "l"}
    assert texts(made, fill(made, {"a": 0, "b": 0}, 25, order=["a", "b"])) == {"a": "s", "b": "l"}
    assert texts(made, fill(made, {"a": 0, "b": 0}, 30, order=["a", "b"])) == {"a": "l", "b": "s"}


@pytest.mark.parametrize("bits, expected", [(2, "int2"), (4, "int4"), (8, "int8"), (99, "int8")])
def test_the_largest_uniform_option_that_fits(bits, expected):
    made = table({"a": 800, "b": 1600, "c": 800})
    assert set(texts(made, uniform(made, 100 + bits * 3200 // 8)).values()) == {expected}


def test_what_is_left_goes_to_the_first_layers():
    made = table({"a": 800, "b": 800, "c": 800, "d": 800})
    budget = 100 + 4 * 3200 // 8 + 2 * 400 + 10  # four bits everywhere, and eight on two sites
    assert texts(made, uniform(made, budget)) == {"a": "int8", "b": "int8", "c": "int4", "d": "int4"}


def test_a_site_without_the_option_takes_its_largest_below():
    made = table({"a": 800, "b": 800})
    made.choices["b"] = [Choice("int3", 300, 800, 2.0), Choice("keep", 1600, 800, 0.0)]
    assert texts(made, uniform(made, 100 + 400 + 300)) == {"a": "int4", "b": "int3"}


def test_a_site_that_has_nothing_as_small_takes_its_cheapest():
    made = table({"a": 800, "b": 80})
    made.choices["b"] = [Choice("keep", 160, 80, 0.0)]
    assert texts(made, uniform(made, 100 + 200 + 160)) == {"a": "int2", "b": "keep"}
