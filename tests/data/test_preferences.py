"""Pairs of answers are read as they are, and their rows' faults are told by line."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from modicum.core.errors import DataError
from modicum.data.preferences import from_preferences, holds_preferences
from modicum.models.located import DEMO


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DEMO)


def written(folder, rows):
    path = folder / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def pair(at):
    return {"prompt": f"number {at}:", "chosen": " yes", "rejected": " no, not at all"}


def test_pairs_share_their_prompt_and_judge_their_answers(tmp_path, tokenizer):
    path = written(tmp_path, [pair(at) for at in range(10)])
    assert holds_preferences(path)
    splits = from_preferences(path, tokenizer, tokens=64)
    rows = [*splits.calibration, *splits.validation, *splits.test]
    assert len(rows) == 10 and splits.test
    for row in rows:
        begun = int((row["chosen_labels"] < 0).sum())
        assert torch.equal(row["chosen_ids"][:, :begun], row["rejected_ids"][:, :begun])
        said = row["rejected_ids"][row["rejected_labels"] >= 0]
        assert tokenizer.decode(said[:-1]) == " no, not at all" and said[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    "change, why",
    [
        ({"chosen": 3}, "must have a text under chosen, has 3 there"),
        ({"rejected": None}, "rejected, has null there"),
        ({"rejected": " yes"}, "has one twice"),
        ({"chosen": " long" * 99}, "must have at most 64 tokens"),
    ],
)
def test_rows_that_do_not_fit_are_told_with_their_line(tmp_path, tokenizer, change, why):
    path = written(tmp_path, [pair(0), pair(1) | change, pair(2)])
    with pytest.raises(DataError, match=why) as told:
        from_preferences(path, tokenizer, tokens=64)
    assert "line 2" in str(told.value)
    with pytest.raises(DataError, match="at least 3 pairs"):
        from_preferences(written(tmp_path, [pair(0)]), tokenizer, tokens=64)
    assert not holds_preferences(written(tmp_path, [{"prompt": "a", "completion": "b"}]))
