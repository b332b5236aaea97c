import json

import pytest

from modicum.core.errors import SettingError
from modicum.core.plan import Choice, Plan, Table


@pytest.fixture
def plan():
    return Plan("modicum", {"a.weight": "gptq bits=4", "b.[q,k]": "keep"}, {"heads": [0, 2]}, ["a note"])


def table():
    small, large = Choice("int2", 10, 40, 2.0), Choice("int4", 20, 40, 0.5)
    return Table({"a": [large, small], "b": [large, Choice("x", 10, 40, 3.0), small]}, fixed={"bytes": 7})


def tree():
    """A block that may be dropped, a cut in it and a weight under that; and a flat site."""
    return Table(
        {
            "depth": [Choice("keep", 0, 0, 0.0), Choice("drop b", 0, 0, 2.0)],
            "cut": [
                Choice("whole", 0, 0, 0.0, given=("keep",)),
                Choice("half", 0, 0, 0.5, given=("keep",)),
                Choice("gone", 0, 0, 0.0, given=("drop b",)),
            ],
            "unit": [
                Choice("int4", 20, 40, 0.4, given=("whole",)),
                Choice("keep", 80, 40, 0.0, memory=8, given=("whole",)),
                Choice("int4", 10, 20, 0.3, given=("half",), distance=1.5),
                Choice("int8", 20, 20, 0.1, seconds=0.5, given=("half",)),
                Choice("gone", 0, 0, 0.0, given=("gone",)),
            ],
            "head": [Choice("keep", 8, 4, 0.0), Choice("int4", 2, 4, 0.1)],
        },
        {"bytes": 7, "memory": 3.0},
        {"cut": "depth", "unit": "cut"},
        {"unit": {"weights": 40.0, "eigenvalue": 3.0, "trace": 0.1}},
    )  # fmt: skip


def test_a_plan_comes_back(plan, tmp_path):
    plan.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == plan


def test_a_plan_may_be_short(tmp_path):
    (tmp_path / "p.json").write_text('{"format": "modicum-plan", "version": 1, "target": "modicum"}')
    assert Plan.read(tmp_path / "p.json") == Plan("modicum")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"format": "plan"}, "must be an object of format modicum-plan, version 1. Start from"),
        ({"version": 2}, "must be an object of format modicum-plan, version 1. Start from"),
        ({"sites": {"a": "gptq bits=4"}}, "has no 'sites'. Known: target, options, cuts, notes."),
        ({"options": []}, "options must map site names to option texts."),
        ({"options": {"a": 4}}, "options must map site names to option texts."),
        ({"cuts": {"a": 4}}, "cuts must map site names to lists of kept group numbers."),
        ({"cuts": {"a": ["0"]}}, "cuts must map site names to lists of kept group numbers."),
        ({"cuts": None}, "cuts must map site names to lists of kept group numbers."),
        ({"target": None}, "target must be a text."),
        pytest.param({"notes": 7}, ""),
    ],
)
def test_a_malformed_plan_is_told(plan, tmp_path, change, said):
    path = tmp_path / "plan.json"
    plan.write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SettingError) as error:
        Plan.read(path)
    assert str(error.value).startswith(f"plan {path}: ") and said in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"\xff\xfe", b"null"])
def test_a_file_that_is_no_plan_is_told(tmp_path, content):
    (tmp_path / "p.json").write_bytes(content)
    with pytest.raises(SettingError, match="must be"):
        Plan.read(tmp_path / "p.json")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(SettingError, match="must be a readable JSON file"):
        Plan.read(tmp_path / "nothing.json")


def test_a_table_sums_its_selection():
    picks = {"a": 0, "b": 2}
    assert table().cost(picks) == 37 and table().harm(picks) == 2.5
    assert table().cost(picks, "values") == 80 and table().cost(picks, "seconds") == 0
    assert Table().cost({}) == 0


def test_a_selection_fits_where_it_is_within_all_limits():
    picks = {"a": 0, "b": 2}
    assert table().fits(picks, {}) and table().fits(picks, {"bytes": 37, "values": 80})
    assert not table().fits(picks, {"bytes": 36.9, "values": 80}) and not table().fits(picks, {"bytes": 37, "values": 79})


def test_a_load_is_the_share_of_what_choices_may_spend():
    choice = Choice("int4", 20, 40, 0.5)
    assert table().load(choice, {"bytes": 47}) == 0.5
    assert table().load(choice, {"bytes": 47, "values": 400}) == pytest.approx(0.6)
    assert table().load(choice, {}) == 0 and table().load(choice, {"bytes": 5}) > 1e20


def test_the_cheapest_takes_the_least_harm_among_equals():
    assert table().cheapest() == {"a": 1, "b": 2}


def test_the_cheapest_is_that_of_the_limited_resources():
    made = Table({"a": [Choice("packed", 1, 9, 0.0, memory=9), Choice("cut", 3, 3, 0.0, memory=3)]})
    assert made.cheapest() == made.cheapest({"bytes": 10}) == {"a": 0}
    assert made.cheapest({"memory": 10}) == made.cheapest({"bytes": 10, "memory": 10}) == {"a": 1}


def test_what_stands_depends_on_what_is_above():
    made = tree()
    assert made.children == {"depth": ["cut"], "cut": ["unit"]}
    assert made.allowed("unit", {"cut": 1}) == [2, 3] and made.under("cut", "drop b") == [2] and made.allowed("head", {}) == [0, 1]
    assert made.consistent({"depth": 0, "cut": 1, "unit": 2, "head": 0})
    assert not made.consistent({"depth": 1, "cut": 1, "unit": 2, "head": 0})
    assert not made.consistent({"depth": 0, "cut": 1, "unit": 1, "head": 0})


@pytest.mark.parametrize(
    "depth, cut, unit, settled",
    [
        (0, 1, 2, (0, 1, 2)),
        (0, 1, 0, (0, 1, 2)),  # the same option
        (0, 1, 1, (0, 1, 2)),  # none of its name: the smallest
        (1, 0, 1, (1, 2, 4)),
        (0, 2, 4, (0, 0, 0)),  # as small as the other level, and without harm
    ],
)
def test_what_no_longer_stands_is_exchanged(depth, cut, unit, settled):
    picks = {"depth": depth, "cut": cut, "unit": unit, "head": 1}
    assert tree().settle(picks) == dict(zip(("depth", "cut", "unit"), settled)) | {"head": 1}
    assert picks == {"depth": depth, "cut": cut, "unit": unit, "head": 1}


def test_the_best_selection_sees_what_hangs_below():
    assert tree().cheapest() == {"depth": 1, "cut": 2, "unit": 4, "head": 1}
    assert tree().best(lambda _, choice: (choice.harm,)) == {"depth": 0, "cut": 0, "unit": 1, "head": 0}
    # By bytes after the block was kept, the harm of the cut pays.
    assert tree().best(lambda site, choice: (site == "depth" and choice.harm, choice.bytes)) == {"depth": 0, "cut": 1, "unit": 2, "head": 1}


@pytest.mark.parametrize("made", [table(), tree(), Table()])
def test_a_table_comes_back_through_json(made):
    assert made.children.keys() == set(made.parents.values())  # what is remembered of a table is not of it
    assert Table.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_a_table_may_lack_what_came_later():
    value = tree().to_json()
    del value["facts"]
    for choice in value["choices"]["unit"]:
        del choice["distance"]
    read = Table.from_json(json.loads(json.dumps(value)))
    assert read.facts == {} and read.choices["unit"][2] == Choice("int4", 10, 20, 0.3, given=("half",))
    old = {"choices": {"a": [{"option": "int4", "bytes": 20, "values": 40, "harm": 0.5}]}}
    assert Table.from_json(old) == Table({"a": [Choice("int4", 20, 40, 0.5)]})
