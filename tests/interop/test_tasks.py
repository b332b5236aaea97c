"""lm-evaluation-harness on a result and its original, on tasks made of local files: its figures are those that the models' own logits give."""

import json
import math
from pathlib import Path

import pytest
import torch

import modicum
from modicum.core.errors import DataError, SettingError
from modicum.models.located import DEMO
from modicum.receipt.comparison import comparison

CHOICE = """task: local_choice
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
"""
WORDS = ["return", "self", "import", "None", "print", "class"]
DOCUMENTS = [
    {"question": f"def {a}(x):\n    ", "choices": [f"{a} {b}", f"{b} x", "return x"], "answer": 2} for a in WORDS for b in WORDS if a != b
]


@pytest.fixture(scope="module", autouse=True)
def harness():
    try:
        import lm_eval
    except ImportError as error:
        pytest.skip(f"lm_eval cannot be imported here ({error}): run make interop")
    return lm_eval


@pytest.fixture
def tasks(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "choice.jsonl").write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    (folder / "choice.yaml").write_text(CHOICE.format(data=folder / "choice.jsonl"))
    return folder


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("tasks") / "out"
    modicum.fit(
        "demo", method="nearest bits=2 group=32", target="modicum", out=out, samples=2, tokens=64, test_samples=2, allow_broken=True
    )
    return out


def reached(model, tokenizer):
    """The share of documents whose answer has the greatest log-likelihood."""
    right = 0
    for document in DOCUMENTS:
        begun = tokenizer(document["question"])["input_ids"]
        scores = []
        for choice in document["choices"]:
            ids = torch.tensor([tokenizer(document["question"] + choice)["input_ids"]])
            with torch.no_grad():
                told = model(ids).logits[0, :-1].float().log_softmax(-1)
            scores.append(float(told.gather(1, ids[0, 1:, None])[len(begun) - 1 :].sum()))
        right += scores.index(max(scores)) == document["answer"]
    return right / len(DOCUMENTS)


def test_figures_are_those_of_the_models_own_logits(tasks, result, tmp_path):
    from transformers import AutoTokenizer

    found = modicum.evaluate(result, reference="demo", samples=2, tokens=64, compute="float32", lm_eval=str(tasks))
    (row,) = found["tasks"]
    tokenizer = AutoTokenizer.from_pretrained(result)
    mine, theirs = (reached(modicum.load(place).float(), tokenizer) for place in (result, DEMO))
    assert (row["task"], row["metric"], row["samples"]) == ("local_choice", "acc", len(DOCUMENTS))
    assert row["value"] == pytest.approx(mine) and row["original"] == pytest.approx(theirs)
    assert row["error"] == pytest.approx(math.sqrt(mine * (1 - mine) / (len(DOCUMENTS) - 1)))
    (tmp_path / "found.json").write_text(json.dumps(found))
    page = comparison([result, tmp_path / "found.json"])
    assert "local_choice" in page and f"{row['value']:.4f} ± {row['error']:.4f}" in page


def test_slips_are_told_in_a_sentence(tasks, tmp_path):
    run = lambda asked: modicum.evaluate("demo", samples=2, tokens=64, lm_eval=asked)
    with pytest.raises(SettingError, match="lm-eval: 'nosuchtask' is no task and no folder of tasks"):
        run("nosuchtask")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingError, match="must hold a YAML file with a task, holds none"):
        run(str(tmp_path / "empty"))
    (tasks / "choice.jsonl").unlink()
    with pytest.raises(DataError, match="lm-eval: the tasks cannot be run"):
        run(str(Path(tasks)))
