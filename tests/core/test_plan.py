import json

import pytest

from modicum.core.errors import SettingError
from modicum.core.plan import Choice, Plan, Table


@pytest.fixture
def plan():
    return Plan("modicum", {"a.weight": "gptq bits=4", "b.[q,k]": "keep"}, {"heads": [0, 2]}, ["a note"])


def table():
    small, large = Choice("int2", 10, 40, 2.0), Choice("int4", 20, 40, 0.5)
    return Table({"a": [large, small], "b": [large, Choice("x", 10, 40, 3.0), small]}, fixed=7)


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
    assert Table().cost({}) == 0


def test_the_cheapest_takes_the_least_harm_among_equals():
    assert table().cheapest() == {"a": 1, "b": 2}


def test_a_table_comes_back_through_json():
    assert Table.from_json(json.loads(json.dumps(table().to_json()))) == table()
