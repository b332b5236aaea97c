"""A model is judged against a reference only where both read a text as the same tokens."""

import json
import shutil

import pytest

from modicum.core.errors import ModelError
from modicum.models.located import DEMO
from modicum.receipt import evaluate

SMALL = {"samples": 2, "tokens": 16}


@pytest.fixture
def other(tmp_path):
    """The demo under another tokenizer of the same size."""

    def changed(change):
        folder = tmp_path / "other"
        shutil.copytree(DEMO, folder)
        body = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        change(body["model"])
        (folder / "tokenizer.json").write_text(json.dumps(body), encoding="utf-8")
        return folder

    return changed


def swap(model):
    """Two tokens change their numbers."""
    one, two = [token for token in model["vocab"] if token.isalpha()][:2]
    model["vocab"][one], model["vocab"][two] = model["vocab"][two], model["vocab"][one]


def test_another_tokenizer_of_the_same_size_is_refused(other):
    with pytest.raises(
        ModelError,
        match=r"its tokenizer must be that of the reference, demo, or what trim makes of it, and of its \d+ tokens \d+ have the number",
    ):
        evaluate(other(swap), reference="demo", **SMALL)


def test_the_same_tokens_by_other_rules_are_refused(other):
    with pytest.raises(ModelError, match="it divides text into the same tokens by other rules"):
        evaluate(other(lambda model: model["merges"].reverse()), reference="demo", **SMALL)


def test_the_same_tokenizer_is_compared(other):
    assert evaluate(other(lambda model: None), reference="demo", **SMALL)["quality"]["mean"] == pytest.approx(0, abs=1e-9)
