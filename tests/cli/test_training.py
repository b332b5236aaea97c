"""Training a small model, as a user would call it."""

import json

import pytest
from click.testing import CliRunner

from modicum.cli.main import main
from modicum.train.accounts import beginners

CONFIG = {
    "model_type": "llama", "vocab_size": 1024, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
FEW = ["--tokenizer", "demo", "--steps", "3", "--tokens", "24", "--samples", "16", "--test-samples", "4", "--batch", "2"]


def run(*words):
    result = CliRunner().invoke(main, [str(word) for word in words])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path / "config.json"


def test_a_model_is_trained_told_and_judged(config, tmp_path):
    code, said, _ = run("train", config, "--params", "75%", "--method", "rigl every=2", "--out", tmp_path / "out", "--baselines", *FEW)
    assert code == 0 and "rigl keep=" in said and "against dense:" in said and "4 held-out sequences" in said
    code, said, _ = run("eval", tmp_path / "out", "--samples", "4", "--tokens", "24", "--json")
    assert code == 0 and json.loads(said)
    code, said, _ = run("densify", tmp_path / "out", "--out", tmp_path / "plain")
    assert code == 0, said
    assert run("train", config, "--params", "75%", "--out", tmp_path / "out", *FEW)[0] == 2, "nothing is overwritten unasked"


def test_a_race_is_told(config, tmp_path):
    code, said, _ = run("train", config, "--size", "170kB", "--method", "auto", "--out", tmp_path / "out", *FEW)
    assert code == 0 and said.startswith("race, 5 updates: ") and "\nleft out of the race, dense: " in said
    race = json.loads((tmp_path / "out" / "receipt.json").read_text())["race"]
    assert sorted([*(name.split()[0] for name in race["rounds"][0]["lost"]), *race["left out"]]) == beginners(), (
        "each races, or it is said why not"
    )


@pytest.mark.parametrize(
    "words, said",
    [
        (["--method", "rigl keep=2"], "must lie between"),
        (["--method", "riggl"], "rigl"),
        (["--params", "3"], "needs a sign"),
        (["--size", "1kB"], "takes at least"),
        (["--data", "none.txt"], "none.txt"),
    ],
)
def test_slips_are_told_in_one_line(config, tmp_path, words, said):
    code, _, told = run("train", config, "--out", tmp_path / "out", *FEW, *words)
    assert code == 2 and said in told and len(told.splitlines()) == 1 and not (tmp_path / "out").exists()
