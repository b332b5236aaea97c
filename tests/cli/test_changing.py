"""Commands that change a model, as a user would call them."""

import filecmp
import json

import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from modicum.cli.main import main
from modicum.models.located import DEMO

FEW = ["--steps", "2", "--tokens", "32", "--samples", "16", "--test-samples", "4", "--batch", "2"]


def run(*words):
    result = CliRunner().invoke(main, [str(word) for word in words])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    out = tmp_path_factory.mktemp("adapted") / "delta"
    code, said, _ = run("adapt", "demo", "--out", out, "--method", "lora rank=2", "--rate", "0.01", *FEW)
    assert code == 0 and "trained numbers beside 7,344,384" in said and "held-out sequences" in said
    return out


def test_what_was_learnt_is_told_applied_and_taken_back(learnt, tmp_path):
    receipt = json.loads((learnt / "receipt.json").read_text())
    assert receipt["trained"] * 4 == receipt["bytes"] and len(receipt["losses"]) == 2 and receipt["test"]["sequences"] == 4
    assert receipt["test"]["interval"][0] <= receipt["test"]["change"] <= receipt["test"]["interval"][1]
    code, said, _ = run("show", learnt, "--base", "demo", "--json")
    rows = json.loads(said)
    assert code == 0 and len(rows) == receipt["units"] and all(row["half"] <= 2 and row["relative"] > 0 for row in rows)
    drawn = tmp_path / "spectra.svg"
    assert run("show", learnt, "--base", "demo", "--picture", drawn)[0] == 0 and "first direction" in drawn.read_text()
    assert run("show", learnt, "--base", "demo", "--picture", drawn)[0] == 2, "nothing is overwritten unasked"
    assert run("apply", "demo", learnt, "--out", tmp_path / "out")[0] == 0
    assert run("apply", "demo", learnt, "--out", tmp_path / "out")[0] == 2, "nothing is overwritten unasked"
    code, said, _ = run("delta", tmp_path / "out", "--base", DEMO, "--rank", "2", "--out", tmp_path / "again", "--json")
    assert code == 0 and json.loads(said)["bytes"] == receipt["bytes"] and len(json.loads(said)["changed"]) == receipt["units"]
    assert run("revert", tmp_path / "out", "--out", tmp_path / "back")[0] == 0
    code, _, told = run("apply", "demo", learnt, "--out", learnt, "--overwrite")
    assert code == 2 and "must not be what is read" in told and (learnt / "delta.json").exists()
    code, _, told = run("delta", learnt, "--base", tmp_path / "out", "--format", "peft", "--out", tmp_path / "x")
    assert code == 2 and "made on another weight" in told and not (tmp_path / "x").exists()
    assert "must be finite" in run("apply", "demo", learnt, "--out", tmp_path / "x", "--scale", "nan")[2]
    assert filecmp.cmp(DEMO / "model.safetensors", tmp_path / "back" / "model.safetensors", shallow=False)


def test_a_classifier_learns_texts_with_labels(tmp_path):
    shape = {"vocab_size": 1024, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForSequenceClassification(BertConfig(**shape, num_labels=2, id2label={0: "low", 1: "high"})).save_pretrained(tmp_path / "bert")
    AutoTokenizer.from_pretrained(DEMO).save_pretrained(tmp_path / "bert")
    rows = [{"text": f"{'up' if n % 2 else 'down'} {n}", "label": ("low", "high")[n % 2]} for n in range(24)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    learning = ("adapt", tmp_path / "bert", "--method", "lora rank=2", "--steps", "3", "--out", tmp_path / "out")
    code, said, told = run(*learning, "--data", tmp_path / "rows.jsonl")
    assert code == 0 and "held-out texts" in said, told
    code, said, _ = run(*learning, "--data", tmp_path / "rows.jsonl", "--against", "full", "--overwrite")
    other = json.loads((tmp_path / "out" / "receipt.json").read_text())["against"]
    assert code == 0 and f"full, of {other['trained']:,} numbers, has {other['test']['before']:.4f}" in said and len(other["losses"]) == 3
    code, _, told = run(*learning, "--data", tmp_path / "rows.jsonl", "--against", "gptq", "--overwrite")
    assert code == 2 and "'gptq bits=4' must be one trained step" in told
    code, _, told = run(*learning, "--overwrite")
    assert code == 2 and "must be a table of texts with a label each" in told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("adapt", "demo", "--method", "gptq", "--out", "x"), "must be one trained step"),
        (("adapt", "demo", "--method", "lora rank=0", "--out", "x"), "rank"),
        (("adapt", "demo", "--data", "none.txt", "--out", "x"), "none.txt"),
        (("apply", "demo", "nowhere", "--out", "x"), "delta.json"),
        (("revert", "nowhere", "--out", "x"), "must be a folder that modicum wrote"),
        (("delta", "demo", "--base", "demo", "--rank", "0", "--out", "x"), "rank: must be at least 1"),
        (("show", "nowhere"), "delta.json"),
        (("show", "nowhere", "--picture", "x.svg"), "--base"),
        (("fit", "demo", "--method", "lora", "--out", "x"), "lora: is trained, and nothing trains here"),
    ],
)
def test_bad_input_is_one_sentence(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, told = run(*words)
    assert code == 2 and said in told and len(told.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
