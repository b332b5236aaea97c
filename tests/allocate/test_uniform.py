import pytest
from hypothesis import given
from hypothesis import strategies as st

from modicum.allocate._family import fill, floor
from modicum.allocate.uniform import uniform
from modicum.core.plan import Choice, Table


def table(sites, menu=((2, 8.0), (4, 1.0), (8, 0.1)), fixed=100):
    """A table of sites by name and number of weights; each option costs its bits per weight and harms in proportion to the weights."""
    found = {
        name: [Choice(f"int{bits}", bits * values // 8, values, harm * values / 1000, memory=values) for bits, harm in menu]
        for name, values in sites.items()
    }
    return Table(found, {"bytes": fixed})


def texts(table, picks):
    return {site: table.choices[site][index].option for site, index in picks.items()}


@pytest.mark.parametrize("bits, expected", [(2, "int2"), (4, "int4"), (8, "int8"), (99, "int8")])
def test_the_largest_uniform_option_that_fits(bits, expected):
    made = table({"a": 800, "b": 1600, "c": 800})
    assert set(texts(made, uniform(made, {"bytes": 100 + bits * 3200 // 8})).values()) == {expected}


def test_what_is_left_goes_to_the_first_layers():
    made = table({"a": 800, "b": 800, "c": 800, "d": 800})
    budget = 100 + 4 * 3200 // 8 + 2 * 400 + 10  # four bits everywhere, and eight on two sites
    assert texts(made, uniform(made, {"bytes": budget})) == {"a": "int8", "b": "int8", "c": "int4", "d": "int4"}


def test_a_site_without_the_option_takes_its_largest_below():
    made = table({"a": 800, "b": 800})
    made.choices["b"] = [Choice("int3", 300, 800, 2.0), Choice("keep", 1600, 800, 0.0)]
    assert texts(made, uniform(made, {"bytes": 100 + 400 + 300})) == {"a": "int4", "b": "int3"}


def test_a_site_that_has_nothing_as_small_takes_its_cheapest():
    made = table({"a": 800, "b": 80})
    made.choices["b"] = [Choice("keep", 160, 80, 0.0)]
    assert texts(made, uniform(made, {"bytes": 100 + 200 + 160})) == {"a": "int2", "b": "keep"}


def test_of_options_as_large_the_least_harmful_is_taken():
    made = table({"a": 800, "b": 800}, menu=((2, 8.0), (4, 3.0), (4, 1.0), (4, 2.0)))
    assert uniform(made, {"bytes": 100 + 800}) == {"a": 2, "b": 2}


def test_headers_do_not_part_options_of_one_kind():
    made = table({"a": 800, "b": 800})
    made.choices["b"] = [Choice(c.option, c.bytes + 16, c.values, c.harm) for c in made.choices["b"]]
    assert texts(made, uniform(made, {"bytes": 100 + 816})) == {"a": "int4", "b": "int4"}


def test_every_limit_counts():
    made = table({"a": 800, "b": 800})
    made.choices = {s: [Choice(c.option, c.bytes, c.values, c.harm, memory=c.bytes) for c in found] for s, found in made.choices.items()}
    assert texts(made, uniform(made, {"bytes": 9999, "memory": 400})) == {"a": "int2", "b": "int2"}
    assert texts(made, uniform(made, {"bytes": 900, "memory": 9999})) == {"a": "int4", "b": "int4"}


@pytest.mark.parametrize("share, whole", [(0.9, True), (0.3, True), (0.02, False)])
def test_nothing_is_cut_where_that_can_be_avoided(share, whole, grown, within):
    for seed in range(5):
        made = grown(seed)
        picks = uniform(made, within(made, share))
        assert all((made.choices[site][picks[site]].harm == 0) == whole for site in ("depth", "b0.cut", "b1.cut")) or not whole
        assert (texts(made, picks)["depth"] == "keep" and texts(made, picks)["b0.cut"] == texts(made, picks)["b1.cut"] == "whole") == whole


def naive(made, limits):
    """The twin of ``uniform`` on flat sites that goes through all rates and all sites."""
    load = lambda choice: made.load(choice, limits)
    rate = lambda found, choice: load(choice) / max(1, *(other.values for other in found))
    order = lambda found: sorted(range(len(found)), key=lambda index: (load(found[index]), -found[index].harm))
    for most in sorted({rate(found, choice) for found in made.choices.values() for choice in found}, reverse=True):
        below = {s: [i for i in order(found) if rate(found, found[i]) <= most * 1.05] for s, found in made.choices.items()}
        picks = {site: indices[-1] if indices else order(made.choices[site])[0] for site, indices in below.items()}
        if made.fits(picks, limits):
            return fill(made, picks, limits, order=list(made.choices))
    return fill(made, floor(made, limits), limits, order=list(made.choices))


@given(data=st.data())
def test_it_is_what_going_through_all_rates_gives(data, tables):
    made, limits = data.draw(tables(deep=False))
    assert uniform(made, limits) == naive(made, limits)
