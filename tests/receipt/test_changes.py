"""The pages of an edit, of what was forgotten and of what was learnt: what they say, and that what is no such receipt is told."""

import json

import pytest

from modicum.core.errors import SettingError
from modicum.receipt.changes import changes, edited, forgotten, learnt


def test_an_edit_says_each_fact_and_what_changed(taught):
    html = edited(taught)
    assert "95.0 %" in html and "+0.90 %" in html and "class &lt;b&gt;Zor(" in html and "not reached" in html and "3 of 4" in html
    assert html.count("<svg") == 2 and "<script" not in html


def test_what_was_forgotten_says_what_was_kept(lost):
    html = forgotten(lost)
    assert "area of the attack" in html and "a model that never saw it" in html and "layers.1 alone" in html and html.count("<svg") == 4


def test_what_was_learnt_says_every_task_at_every_time(course):
    html = learnt(course)
    assert "2 of 3" in html and "+0.2500" in html and "prose &lt;b&gt;" in html and "prose <b>" not in html and html.count("<svg") == 2
    assert html.count('<th scope="row">') == 4 + 3 and "3.0000" in html and "<script" not in html


def test_a_single_task_of_any_name_is_told(course):
    alone = course | {
        "tasks": ["_x"], "matrix": [[3.0], [1.5]], "lost": {"_x": course["lost"]["capitals"]}, "same bits": {"_x": True}, "bytes": [1], "mean": 1.5
    }  # fmt: skip
    html = learnt(alone)
    assert (
        "<h1>Net: 1 task</h1>" in html and "1 delta," in html and html.count(">_x<") == 2 * 2 + 3
    )  # axis and legend of both, and the tables


def test_a_folder_is_told_by_its_receipt(taught, tmp_path):
    assert changes(tmp_path) is None
    (tmp_path / "receipt.json").write_text(json.dumps(taught))
    assert changes(tmp_path)() == edited(taught)
    with pytest.raises(SettingError, match="must be one of format modicum-forgotten"):
        forgotten(taught)
    with pytest.raises(SettingError):
        learnt({"format": "modicum-learnt", "tasks": ["one"], "matrix": []})
    with pytest.raises(SettingError):
        edited({"format": "modicum-edited"})
