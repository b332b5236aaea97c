import copy
import json
import math
import shutil

import pytest
import torch
from torch import nn

from modicum.core.errors import DataError, ModelError, SettingError
from modicum.data import from_text
from modicum.models.located import DEMO
from modicum.receipt import evaluate
from modicum.testing import zoo

DOCUMENT = "A model is as small as its job allows. Bytes are counted, outputs compared, numbers reported: nothing is guessed.\n"


@pytest.fixture(scope="module")
def twin():
    return zoo.tied_twin()


@pytest.fixture(scope="module")
def directory(twin, tmp_path_factory):
    path = tmp_path_factory.mktemp("twin")
    twin[0].save_pretrained(path)
    for file in DEMO.glob("tokenizer*"):
        shutil.copy(file, path)
    return path


def shaken(module, size=0.02):
    other = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in other.parameters():
            value += size * value.std() * torch.randn(value.shape, generator=generator)
    return other


def test_perplexity_and_divergence_are_what_the_definitions_say(twin):
    original, batches = twin
    candidate = shaken(original)
    divergences, surprises = [], []
    with torch.no_grad():
        for batch in batches:
            for ids in batch["input_ids"]:
                p, q = (model(input_ids=ids[None]).logits[0].double().log_softmax(-1) for model in (original, candidate))
                divergences.append(float((p.exp() * (p - q)).sum(-1).mean()))
                surprises.append(-float(q[:-1].gather(1, ids[1:, None]).mean()))
    found = evaluate(candidate, data=batches, reference=original)
    assert found["quality"]["mean"] == pytest.approx(sum(divergences) / len(divergences), rel=1e-3)
    assert found["quality"]["perplexity"] == pytest.approx(math.exp(sum(surprises) / len(surprises)), rel=1e-4)
    assert found["quality"]["sequences"] == len(divergences) == 7
    assert found["quality"]["low"] < found["quality"]["mean"] < found["quality"]["high"]


def test_without_reference_there_is_perplexity_alone(twin):
    original, batches = twin
    alone, against = evaluate(original, data=batches), evaluate(original, data=batches, reference=original)
    assert set(alone["quality"]) == {"sequences", "tokens", "perplexity"}
    assert alone["quality"]["perplexity"] == against["quality"]["perplexity"] == against["quality"]["perplexity_original"]
    assert against["quality"]["mean"] == 0.0
    assert alone["reference"] is None and against["reference"] == "Qwen2ForCausalLM"


def test_directory_is_judged_on_the_test_part_that_fit_reports_on(directory):
    found = evaluate(directory, reference=str(directory), samples=3, tokens=16, seed=4)
    from transformers import AutoTokenizer

    splits = from_text(None, AutoTokenizer.from_pretrained(directory), samples=9, tokens=16, seed=4, test_samples=3)
    taken = found["data"].pop("taken")
    assert found["data"] == {"source": "shipped", "notes": [], "hash": splits.hashes["test"]}
    assert taken["used_tokens"] == sum(batch["input_ids"].numel() for batch in splits.test) < taken["tokens"]
    assert found["quality"]["sequences"] == 3 and found["quality"]["tokens"] == 48 and found["quality"]["mean"] == 0.0
    assert found["model"] == found["reference"] == str(directory)
    assert json.loads(json.dumps(found)) == found


def test_equals_the_module_that_the_directory_holds(directory, twin):
    loaded = evaluate(directory, samples=2, tokens=16)
    assert evaluate(twin[0], reference=directory, samples=2, tokens=16)["quality"]["perplexity"] == loaded["quality"]["perplexity"]


def test_short_text_is_noted(directory, tmp_path):
    text = tmp_path / "own.txt"
    text.write_text(DOCUMENT * 20)
    found = evaluate(directory, data=text, tokens=16)
    sequences = found["quality"]["sequences"]
    assert 0 < sequences < 64
    assert found["data"]["notes"] == [f"The text gives {sequences} sequences of 16 tokens, of the 64 asked for."]
    assert found["data"]["source"] == str(text)


@pytest.mark.parametrize("given", ["dict", "tensor", "tuples"])
def test_batches_come_in_the_shapes_forward_takes(twin, given):
    original, batches = twin
    data = {"dict": batches[0], "tensor": batches[0]["input_ids"], "tuples": [(batches[0]["input_ids"],)]}[given]
    found = evaluate(original, data=data, reference=shaken(original))
    assert found["quality"]["sequences"] == 2 and found["quality"]["mean"] > 0


def test_modules_are_judged_with_dropout_off_and_left_as_they_came():
    module = nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.5)).train()
    module[0].eval()
    found = evaluate(module, data=[torch.randn(5, 8)], reference=copy.deepcopy(module))
    assert found["quality"]["mean"] == 0.0 and found["quality"]["metric"] == "relative squared error"
    assert [part.training for part in module.modules()] == [True, False, True]


# What the caller can cause


def test_module_without_labels_needs_a_reference():
    with pytest.raises(SettingError, match="needs a reference"):
        evaluate(nn.Linear(8, 4), data=[torch.randn(5, 8)])


def test_outputs_must_have_one_shape():
    with pytest.raises(ModelError, match=r"shape of the reference's, \(5, 3\), have \(5, 4\)"):
        evaluate(nn.Linear(8, 4), data=[torch.randn(5, 8)], reference=nn.Linear(8, 3))


def test_text_needs_a_tokenizer(twin):
    with pytest.raises(ModelError, match="no tokenizer is there"):
        evaluate(twin[0])


def test_spoilt_tokenizer_is_named(directory, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(directory, broken)
    (broken / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="its tokenizer cannot be read"):
        evaluate(broken)


def test_no_batch_is_no_quality(twin):
    with pytest.raises(DataError, match="at least one test sequence"):
        evaluate(twin[0], data=[])


def test_batches_hold_tensors(twin):
    with pytest.raises(DataError, match="str came"):
        evaluate(twin[0], data=["some text"])


def test_unknown_directory(tmp_path):
    with pytest.raises(ModelError, match="no such directory"):
        evaluate(tmp_path / "nothing")


def test_counts_start_at_one(directory):
    with pytest.raises(SettingError, match="at least 1"):
        evaluate(directory, samples=0)
