"""Prompts and answers: only answers are learnt."""

import json

import pytest
from transformers import AutoTokenizer

from modicum.core.errors import DataError
from modicum.data.answers import from_answers, holds_answers
from modicum.models.located import DEMO

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DEMO)


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def learnt(batch, row, tokenizer):
    return tokenizer.decode([label for label in batch["labels"][row].tolist() if label != -100])


@pytest.mark.parametrize("names", [("prompt", "completion"), ("instruction", "output"), ("question", "answer")])
def test_answers_alone_are_learnt(tmp_path, tokenizer, names):
    rows = [dict(zip(names, (f"def f{place}():", f" return {place}"))) for place in range(10)]
    path = written(tmp_path / "a.jsonl", rows)
    assert holds_answers(path)
    splits = from_answers(path, tokenizer, tokens=64, batch=4)
    assert [sum(len(batch["input_ids"]) for batch in part) for part in (splits.calibration, splits.validation, splits.test)] == [7, 1, 2]
    batch = splits.calibration[0]
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    ends = tokenizer.decode([tokenizer.eos_token_id]) if tokenizer.eos_token_id is not None else ""
    told = {learnt(batch, row, tokenizer) for row in range(4)}
    assert told <= {f" return {place}{ends}" for place in range(10)} and len(told) == 4
    assert bool((batch["labels"][batch["attention_mask"] == 0] == -100).all())


def test_turns_of_the_assistant_are_answers(tmp_path, tokenizer):
    chat = AutoTokenizer.from_pretrained(DEMO)
    chat.chat_template = TEMPLATE
    turns = [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")]
    path = written(tmp_path / "a.jsonl", [{"messages": [{"role": role, "content": text} for role, text in turns]}] * 3)
    batch = from_answers(path, chat, tokens=64, batch=1).calibration[0]
    assert learnt(batch, 0, chat) == "two\nfour\n"
    with pytest.raises(DataError, match="chat template"):
        from_answers(path, tokenizer, tokens=64, batch=1)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "a", "completion": "b"}] * 2, "at least 3 rows"),
        ([{"prompt": "a", "completion": "b " * 100}] * 3, "line 1, must have at most 32 tokens"),
        ([{"prompt": "a", "completion": 3}] * 3, "must have a text under completion, has 3 there"),
        ([{"prompt": "a", "completion": None}] * 3, "must have a text under completion, has null there"),
        (
            [{"prompt": "a", "completion": "b"}, {"text": "b"}, {"prompt": "a", "completion": "b"}],
            "line 2, must have a text under prompt, has no such column",
        ),
    ],
)
def test_rows_that_cannot_be_learnt_are_told(tmp_path, tokenizer, rows, said):
    with pytest.raises(DataError, match=said):
        from_answers(written(tmp_path / "a.jsonl", rows), tokenizer, tokens=32, batch=2)


def test_a_table_of_texts_holds_no_answers(tmp_path):
    assert not holds_answers(written(tmp_path / "a.jsonl", [{"text": "a"}])) and not holds_answers(tmp_path)
