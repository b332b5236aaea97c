"""Starting, filling and stepping: what allocators share."""

import math
import time

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modicum.allocate._family import facts, fill, floor, free_sites, ladder, skeleton, step, switched
from modicum.core.errors import SettingError
from modicum.core.plan import Choice, Table


def texts(table, picks):
    return {site: table.choices[site][index].option for site, index in picks.items()}


def filled(table, picks, limits, order=()):
    """The naive twin of ``fill``: all upgrades are looked through before each that is taken."""
    picks = dict(picks)

    def upgrades(sites):
        for site in sites:
            now = table.choices[site][picks[site]]
            for index in table.allowed(site, picks):
                choice = table.choices[site][index]
                drop, extra = now.harm - choice.harm, table.load(choice, limits) - table.load(now, limits)
                if site not in table.children and drop > 0 and table.fits({**picks, site: index}, limits):
                    yield drop / max(extra, 1e-12), extra, site, index

    for site in order:
        if found := list(upgrades([site])):
            picks[site] = min(found, key=lambda upgrade: upgrade[1])[3]
    while found := list(upgrades(table.choices)):
        _, _, site, index = max(found, key=lambda upgrade: upgrade[::2])
        picks[site] = index
    return picks


@given(data=st.data())
def test_fill_is_what_looking_through_all_upgrades_gives(data, tables):
    table, limits = data.draw(tables())
    start = table.settle({site: data.draw(st.integers(0, len(found) - 1)) for site, found in table.choices.items()})
    for limited in (limits, {}):
        assert fill(table, start, limited) == filled(table, start, limited)
        assert fill(table, start, limited, order=list(table.choices)) == filled(table, start, limited, order=list(table.choices))


@given(data=st.data())
def test_fill_never_harms_and_keeps_what_it_was_given(data, tables):
    table, limits = data.draw(tables())
    start = table.cheapest(limits)
    before = dict(start)
    picks = fill(table, start, limits)
    assert start == before and table.harm(picks) <= table.harm(start)
    assert {site: picks[site] for site in table.children} == {site: start[site] for site in table.children}


def test_fill_takes_the_largest_drop_per_byte_first():
    table = Table({"a": [Choice("s", 10, 1, 4.0), Choice("l", 20, 1, 0.0)], "b": [Choice("s", 10, 1, 3.0), Choice("l", 12, 1, 1.0)]})
    start = {"a": 0, "b": 0}
    assert texts(table, fill(table, start, {"bytes": 25})) == {"a": "s", "b": "l"}
    assert texts(table, fill(table, start, {"bytes": 25}, order=["a", "b"])) == {"a": "s", "b": "l"}
    assert texts(table, fill(table, start, {"bytes": 30}, order=["a", "b"])) == {"a": "l", "b": "s"}


def test_fill_gives_to_the_last_name_among_equals():
    found = [Choice("s", 1, 0, 1.0), Choice("l", 2, 0, 0.0)]
    assert fill(Table(dict.fromkeys("acb", found)), dict.fromkeys("acb", 0), {"bytes": 4}) == {"a": 0, "c": 1, "b": 0}


def test_fill_takes_up_again_what_an_upgrade_makes_room_for():
    # The second site's better choice is also smaller in memory, after which the first one's fits; by drops alone the first comes first.
    table = Table(
        {
            "a": [Choice("s", 0, 0, 9.0, memory=4), Choice("l", 1, 0, 0.0, memory=6)],
            "b": [Choice("s", 0, 0, 1.0, memory=4), Choice("l", 4, 0, 0.5, memory=2)],
        }
    )
    assert texts(table, fill(table, {"a": 0, "b": 0}, {"bytes": 10, "memory": 8})) == {"a": "l", "b": "l"}


def test_fill_sums_seconds_without_drift():
    # A tenth has no binary form: taken one after the other, ten of them leave a little less than nothing.
    table = Table({f"s{i}": [Choice("slow", 0, 0, 0.0, seconds=0.1), Choice("fast", 0, 0, 1.0)] for i in range(10)})
    assert set(fill(table, dict.fromkeys(table.choices, 1), {"seconds": 1.0}).values()) == {0}
    assert sum(fill(table, dict.fromkeys(table.choices, 1), {"seconds": math.nextafter(1.0, 0)}).values()) == 1


def test_fill_takes_thousands_of_sites():
    chance = np.random.default_rng(0)
    sizes, harms = np.sort(chance.integers(1000, 10**6, (2000, 12))), -np.sort(-chance.exponential(1.0, (2000, 12)))
    menus = zip(sizes.tolist(), harms.tolist())
    table = Table({f"s{i}": [Choice("o", size, size, harm) for size, harm in zip(*menu)] for i, menu in enumerate(menus)})
    limits = {"bytes": int(sizes[:, 6].sum())}
    start = time.process_time()
    assert table.fits(fill(table, dict.fromkeys(table.choices, 0), limits), limits)
    assert time.process_time() - start < 5


@given(data=st.data())
def test_the_floor_fits_if_anything_does(data, tables, selections):
    table, limits = data.draw(tables())
    picks = floor(table, limits)
    assert table.consistent(picks)
    assert table.fits(picks, limits) == any(table.fits(other, limits) for other in selections(table))
    if len(limits) == 1:
        assert [table.cost(picks, r) for r in limits] == [min(table.cost(other, r) for other in selections(table)) for r in limits]


@given(data=st.data())
def test_the_floor_leaves_what_is_held(data, tables, selections):
    table, limits = data.draw(tables())
    held = data.draw(st.sampled_from(list(selections(table))))
    held = {site: held[site] for site in table.children}
    picks = floor(table, limits, held)
    holding = [other for other in selections(table) if held.items() <= other.items()]
    assert picks in holding and table.fits(picks, limits) == any(table.fits(other, limits) for other in holding)


@given(data=st.data())
def test_the_skeleton_is_cut_no_more_than_it_must_be(data, tables, selections):
    table, limits = data.draw(tables())
    harm = lambda picks: sum(table.choices[site][picks[site]].harm for site in table.children)
    fitting = [picks for picks in selections(table) if table.fits(picks, limits)]
    held = skeleton(table, limits)
    assert held.keys() == table.children.keys()
    if fitting:
        assert harm(held) == pytest.approx(min(map(harm, fitting)), rel=1e-5, abs=1e-5)
        assert any(held.items() <= picks.items() for picks in fitting)


@given(data=st.data())
def test_a_step_up_and_down_again_is_none(data, tables, selections):
    table, limits = data.draw(tables())
    picks = data.draw(st.sampled_from(list(selections(table))))
    site = data.draw(st.sampled_from(list(table.choices)))
    up = step(table, picks, site, limits, +1)
    assume(up is not None)
    assert table.consistent(up) and up[site] != picks[site] and step(table, up, site, limits, -1)[site] == picks[site]
    before, after = table.choices[site][picks[site]], table.choices[site][up[site]]
    if site in table.children:
        assert after.harm <= before.harm
    else:
        assert table.load(after, limits) >= table.load(before, limits)
        assert step(table, up, site, limits, -1) == picks


@given(data=st.data())
def test_a_ladder_ends_where_no_step_leads_on(data, tables, selections):
    table, limits = data.draw(tables())
    picks = data.draw(st.sampled_from(list(selections(table))))
    for site in table.choices:
        rungs = ladder(table, site, picks, limits)
        assert sorted(rungs) == table.allowed(site, picks) and (len(rungs) > 1) == (site in free_sites(table, picks))
        if site not in table.children:
            assert step(table, {**picks, site: rungs[-1]}, site, limits, +1) is None
            assert step(table, {**picks, site: rungs[0]}, site, limits, -1) is None


@given(data=st.data())
def test_what_is_switched_fits_and_is_another(data, tables, selections):
    table, limits = data.draw(tables())
    fitting = [picks for picks in selections(table) if table.fits(picks, limits)]
    assume(fitting)
    picks, seed, steps = data.draw(st.sampled_from(fitting)), data.draw(st.integers(0, 9)), data.draw(st.integers(1, 3))
    found = switched(table, picks, limits, np.random.default_rng(seed), steps)
    assert found == switched(table, picks, limits, np.random.default_rng(seed), steps)
    if found is not None:
        assert found != picks and table.consistent(found) and table.fits(found, limits)


def test_a_switch_pays_for_what_it_raises():
    found = [Choice("s", 1, 0, 4.0), Choice("m", 2, 0, 1.0), Choice("l", 3, 0, 0.0)]
    table, middle = Table({f"s{i}": found for i in range(4)}), dict.fromkeys(["s0", "s1", "s2", "s3"], 1)
    met = [switched(table, middle, {"bytes": 8}, np.random.default_rng(seed)) for seed in range(60)]
    assert {tuple(sorted(picks.values())) for picks in met} == {(0, 1, 1, 2)}
    assert len({tuple(picks.items()) for picks in met}) == 12
    assert switched(table, dict.fromkeys(table.choices, 2), {"bytes": 12}, np.random.default_rng(0)) is None
    assert switched(table, dict.fromkeys(table.choices, 0), {"bytes": 4}, np.random.default_rng(0)) is None


def test_a_switch_finds_the_only_site_that_can_pay():
    table = Table({site: [Choice("s", 1, 0, 4.0), Choice("m", 2, 0, 1.0), Choice("l", 3, 0, 0.0)] for site in "abcdef"})
    picks = dict.fromkeys("abcde", 0) | {"f": 2}
    for seed in range(20):
        found = switched(table, picks, {"bytes": 8}, np.random.default_rng(seed))
        assert found is not None and found["f"] == 1 and sum(found.values()) == 2


def test_missing_facts_are_told():
    table = Table({}, facts={"a": {"trace": 1.0}, "b": {}})
    assert facts(table, ["a"], "hawq_v2", "trace") == {"a": 1.0}
    with pytest.raises(SettingError) as error:
        facts(table, ["a", "b"], "hawq_v2", "trace")
    assert str(error.value) == "hawq_v2: must have the sites' Hessian traces, the table holds none for b. Measure with --curvature."
