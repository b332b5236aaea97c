"""Texts with labels are read as they are, by number or name, and their rows' faults are told by line."""

import json

import pytest
from transformers import AutoTokenizer

from modicum.core.errors import DataError
from modicum.data.labelled import from_classes, holds_classes
from modicum.models.located import DEMO

CLASSES = {0: "low", 1: "high"}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DEMO)


def written(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_labels_are_numbers_or_names_and_second_texts_go_along(tmp_path, tokenizer):
    labels = [0, "high", "1", "low"] * 5
    path = written(tmp_path, [{"text": f"number {at}", "text_pair": "more", "label": label} for at, label in enumerate(labels)])
    assert holds_classes(path) and not holds_classes(written(tmp_path / "..", [{"text": "a"}]))
    splits = from_classes(path, tokenizer, CLASSES, tokens=32)
    rows = [*splits.calibration, *splits.validation, *splits.test]
    assert sorted(int(row["labels"]) for row in rows) == [0] * 10 + [1] * 10 and splits.test
    for row in rows:
        text = tokenizer.decode(row["input_ids"][0])
        assert "number" in text and "more" in text and row["labels"].shape == (1,)
        assert CLASSES[int(row["labels"])] == ("low", "high", "high", "low")[int(text.split("number ")[1].split("more")[0]) % 4]


@pytest.mark.parametrize(
    "change, why",
    [
        ({"label": "hihg"}, "Did you mean high"), ({"label": 2}, "a class of the model, 0 to 1"), ({"label": True}, "a class of the model"),
        ({"label": None}, "a class of the model"), ({"text": 3}, "must have a text under"), ({"text": "long " * 99}, "must have at most 32 tokens"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_are_told_with_their_line(tmp_path, tokenizer, change, why):
    row = {"text": "a few words", "label": 1}
    with pytest.raises(DataError, match=why) as told:
        from_classes(written(tmp_path, [row, row | change, row]), tokenizer, CLASSES, tokens=32)
    assert "line 2" in str(told.value)
    with pytest.raises(DataError, match="at least 3 rows"):
        from_classes(written(tmp_path, [row]), tokenizer, CLASSES, tokens=32)
