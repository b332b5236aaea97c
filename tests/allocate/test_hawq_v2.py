from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modicum.allocate.hawq import hawq
from modicum.allocate.hawq_v2 import hawq_v2
from modicum.allocate.integer_program import integer_program
from modicum.allocate.uniform import uniform
from modicum.core.errors import SettingError
from modicum.core.plan import Table


def omega(table, picks):
    return sum(
        table.facts[site]["trace"] * table.choices[site][index].distance for site, index in picks.items() if site not in table.children
    )


@pytest.mark.parametrize("resources", [("bytes",), ("bytes", "seconds")])
@pytest.mark.parametrize("seed", range(6))
def test_it_is_on_the_frontier(seed, resources, grown, within, selections):
    # No harm is measured, so that nothing but Ω decides.
    table = grown(seed)
    table.choices = {s: [replace(c, harm=c.harm if s in table.children else 0.0) for c in found] for s, found in table.choices.items()}
    limits = within(table, 0.35 + 0.1 * seed, *resources)
    whole = [picks for picks in selections(table) if all(picks[site] == 0 for site in table.children) and table.fits(picks, limits)]
    picks = hawq_v2(table, limits)
    assert picks in whole and omega(table, picks) == pytest.approx(min(omega(table, other) for other in whole), rel=1e-5)
    # And no selection that is smaller in all that is limited has as little.
    smaller = [p for p in whole if all(table.cost(p, r) < table.cost(picks, r) for r in limits)]
    assert all(omega(table, other) > omega(table, picks) * (1 - 1e-5) for other in smaller)


@given(data=st.data())
def test_it_is_the_integer_program_where_harms_are_omega(data, tables):
    table, limits = data.draw(tables(deep=False))
    harms = {s: [replace(c, harm=table.facts[s]["trace"] * c.distance) for c in found] for s, found in table.choices.items()}
    table = Table(harms, table.fixed, facts=table.facts)
    one, other = hawq_v2(table, limits), integer_program(table, limits)
    assert table.harm(one) == pytest.approx(table.harm(other), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_it_beats_one_width_everywhere_where_curvature_differs(seed, quadratic):
    chance = np.random.default_rng(seed)
    bent = quadratic({f"s{i}": np.exp(chance.normal(0, 0.5, 64)) * 10.0 ** chance.uniform(-3, 1) for i in range(8)}, seed)
    limits = {"bytes": 8 * 8 * 3}
    assert bent.rise(hawq_v2(bent.table, limits)) < 0.7 * bent.rise(uniform(bent.table, limits))


@pytest.mark.parametrize("seed", range(5))
def test_it_beats_the_top_eigenvalue_where_spectra_differ(seed, quadratic):
    # Half of the sites bend in one direction, sharply; the others in all directions, less sharply but more in all.
    needle, bowl = np.r_[4.0, np.full(63, 1e-3)], np.full(64, 2.0)
    bent = quadratic({f"s{i}": needle if i % 2 else bowl for i in range(8)}, seed)
    limits = {"bytes": 8 * 8 * 3}
    assert bent.rise(hawq_v2(bent.table, limits)) < 0.5 * bent.rise(hawq(bent.table, limits))


@pytest.mark.parametrize("share, whole", [(0.9, True), (0.3, True), (0.02, False)])
def test_structure_stays_whole_unless_nothing_fits(share, whole, grown, within):
    for seed in range(4):
        table = grown(seed)
        limits = within(table, share, "bytes", "memory")
        picks = hawq_v2(table, limits)
        assert table.fits(picks, limits) and table.consistent(picks)
        assert all(picks[site] == 0 for site in table.children) == whole


def test_traces_below_zero_count_as_zero(quadratic):
    bent = quadratic({"a": np.full(64, 1.0), "b": np.full(64, 1.0)})
    bent.table.facts["b"]["trace"] = -5.0
    picks = hawq_v2(bent.table, {"bytes": 8 * (8 + 2)})
    assert picks == {"a": 3, "b": 0}


def test_missing_curvature_is_told(quadratic):
    bent = quadratic({"a": np.full(64, 1.0), "b": np.full(64, 1.0)})
    whole = dict(bent.table.facts)
    bent.table.facts = {}
    with pytest.raises(SettingError) as error:
        hawq_v2(bent.table, {"bytes": 99})
    assert str(error.value) == "hawq_v2: must have the sites' Hessian traces, the table holds none. Measure with --curvature."
    bent.table.facts = whole
    bent.table.choices = {s: [replace(c, distance=0.0) for c in found] for s, found in bent.table.choices.items()}
    with pytest.raises(SettingError) as error:
        hawq_v2(bent.table, {"bytes": 99})
    assert str(error.value).startswith("hawq_v2: must have the squared changes of the weights, the table holds none. Measure")
