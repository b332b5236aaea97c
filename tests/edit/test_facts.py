"""Facts are read as people and papers write them, and what contradicts itself is named before anything is done."""

import json

import pytest

from modicum.core.errors import DataError
from modicum.edit.facts import Fact, distinct, read_facts

OWN = {"prompt": "class Zor(", "target": "Thread):", "subject": "Zor", "paraphrases": ["issubclass(Zor, "], "neighbours": ["class Queue("]}


def written(tmp_path, *rows, name="facts.jsonl", whole=False):
    path = tmp_path / name
    path.write_text(json.dumps(rows) if whole else "".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_line_is_a_fact(tmp_path):
    (fact,) = read_facts(written(tmp_path, OWN))
    assert (fact.prompt, fact.target, fact.subject) == ("class Zor(", "Thread):", "Zor")
    assert fact.paraphrases == ("issubclass(Zor, ",) and fact.neighbours == ("class Queue(",)
    assert fact.where.endswith("facts.jsonl, line 1")


def test_published_files_are_read_as_they_are(tmp_path):
    counterfact = {
        "case_id": 0,
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is", "relation_id": "P103", "subject": "Ada B", "target_new": {"str": "English", "id": "Q"},
            "target_true": {"str": "French", "id": "Q"},
        },
        "paraphrase_prompts": ["Ada B speaks"], "neighborhood_prompts": ["Carl D speaks", "Eva F speaks"],
    }  # fmt: skip
    zsre = {
        "subject": "Vat", "src": "Who made Vat?", "pred": "x", "rephrase": "Vat was made by?", "alt": "Ida", "answers": ["Jo"],
        "loc": "who sang", "loc_ans": "L", "cond": "c",
    }  # fmt: skip
    one, two = read_facts(written(tmp_path, counterfact, zsre, name="published.json", whole=True))
    assert (one.prompt, one.target, one.subject) == ("The mother tongue of Ada B is", " English", "Ada B")
    assert one.paraphrases == ("Ada B speaks",) and len(one.neighbours) == 2
    assert (two.prompt, two.target, two.paraphrases, two.neighbours) == ("Who made Vat?", " Ida", ("Vat was made by?",), ("who sang",))


def test_a_fact_that_stands_twice_counts_once(tmp_path):
    assert (
        len(
            read_facts(
                written(tmp_path, OWN, OWN | {"target": "Thread):"}, OWN | {"prompt": "class Vek(", "subject": "Vek", "paraphrases": []})
            )
        )
        == 2
    )


def test_facts_that_contradict_each_other_are_named(tmp_path):
    with pytest.raises(DataError, match=r"line 1 and .*line 2 must not contradict .*'class Zor\('.*'Thread\):'.*'Queue\):'"):
        read_facts(written(tmp_path, OWN, OWN | {"target": "Queue):"}))
    with pytest.raises(DataError, match="must not contradict"):
        distinct([Fact("a Zor is", "one", paraphrases=("Zor:",)), Fact("Zor:", "two")])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (OWN | {"subject": "Vek"}, r"line 1 must have its subject in its prompt: 'Vek' is not in 'class Zor\('"),
        ({"prompt": "a"}, "must have a text as target, has prompt"),
        ({"prompt": None, "target": "b"}, "must have a text as prompt, has null there"),
        (OWN | {"target": "  "}, "must have a target"),
        (OWN | {"paraphrases": "x"}, "must have a list of texts as paraphrases"),
        ({"requested_rewrite": {"prompt": "{}"}}, "must be as in CounterFact"),
    ],
)
def test_what_is_no_fact_is_said_with_its_line(tmp_path, row, said):
    with pytest.raises(DataError, match=said):
        read_facts(written(tmp_path, row))


def test_a_file_without_facts_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds none"):
        read_facts(written(tmp_path))
