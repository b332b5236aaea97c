"""The frontier in a receipt: the choice in its place among the selections that nothing beats, and where each site changes on the way."""

import pytest

from modicum.core.plan import Choice, Table
from modicum.fit.along import along


def table():
    """Two layers of 100 bytes as they are, which lose little at 50 bytes and more at 25; the first loses ten times as much."""
    layer = lambda scale: [Choice("int2", 25, 100, 0.4 * scale), Choice("int4", 50, 100, 0.04 * scale), Choice("keep", 100, 100, 0.0)]
    return Table({"a": layer(10), "b": layer(1)}, fixed={"bytes": 7})


def test_the_choice_stands_in_its_place_by_bytes():
    found = along(table(), {"a": 1, "b": 2}, lambda site, text: None)
    sizes = [point["bytes"] for point in found["points"]]
    assert sizes == sorted(sizes) and sizes[0] == 57 and sizes[-1] == 207
    assert found["points"][found["chosen"]] == {"bytes": 157, "harm": pytest.approx(0.4)}
    assert found["options"] == ["int2", "int4", "keep"]


def test_a_selection_of_the_same_size_gives_way_to_the_choice():
    picks = table().cheapest()
    found = along(table(), dict(picks), lambda site, text: None)
    assert [point["bytes"] for point in found["points"]].count(57) == 1 and found["chosen"] == 0


def test_of_each_site_only_changes_are_told():
    beyond = {("a", "int4"): 0.3}
    found = along(table(), {"a": 1, "b": 0}, lambda site, text: beyond.get((site, text)))
    for site, runs in found["sites"].items():
        assert runs[0][0] == 0 and [run[0] for run in runs] == sorted({run[0] for run in runs})
        assert all(one[1] != two[1] for one, two in zip(runs, runs[1:]))
        assert {found["options"][run[1]]: run[2] for run in runs}.items() <= {"int2": 25, "int4": 50, "keep": 100}.items()
        assert {run[4] for run in runs if found["options"][run[1]] == "int4"} <= {beyond.get((site, "int4"))}
    for place, point in enumerate(found["points"]):
        now = [next(run for run in reversed(runs) if run[0] <= place) for runs in found["sites"].values()]
        assert sum(run[2] for run in now) + 7 == point["bytes"] and sum(run[3] for run in now) == pytest.approx(point["harm"])
