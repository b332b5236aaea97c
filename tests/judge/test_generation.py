"""Long continuations: what divergence on given text does not show."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import modicum
from modicum.core.errors import ModelError
from modicum.judge import generation
from modicum.judge.generation import Generation, generates, prompts_of, repetition
from modicum.models.open import open_model

FEW = {"samples": 4, "tokens": 64, "test_samples": 8, "micro_batch": 4}


@given(st.lists(st.integers(0, 2), max_size=30))
def test_a_repetition_is_a_run_of_four_that_stood_there_before(tokens):
    runs, again = [tokens[at : at + 4] for at in range(len(tokens) - 3)], 0
    for at, run in enumerate(runs):
        again += run in runs[:at]
    assert repetition(tokens) == pytest.approx(again / len(runs) if runs else 0.0)


@pytest.fixture(scope="module")
def demo():
    model = open_model("demo")
    return model, modicum.data.splits.from_text(None, model.tokenizer, samples=1, tokens=64, test_samples=8).test


def test_the_original_passes_its_own_check_and_a_ruined_model_does_not(demo, monkeypatch):
    monkeypatch.setattr(generation, "_LONG", 48)
    model, batches = demo
    check = Generation.of(model, prompts_of(model, batches), seed=0)
    twin = model.twin()
    twin.weights.load(twin.weights.names)
    same = check.against(twin.module)
    assert same["failed"] == [] and same["compressed"] == same["original"]
    with torch.no_grad():
        for unit in model.units.values():
            weight = twin.module.get_parameter(unit.parameter)
            weight.copy_(weight.sign() * weight.abs().mean())
    failed = check.against(twin.module)
    assert failed["failed"] and failed["compressed"]["agreed"]["mean"] < same["original"]["agreed"]["low"]


def test_a_broken_result_of_two_bits_fails_the_run_unless_that_is_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "_LONG", 48)
    wanted = {"method": "nearest bits=2 group=0", "out": tmp_path / "out", **FEW}
    with pytest.raises(ModelError, match="bits per treated weight the model must write as its original does.*--allow-broken"):
        modicum.fit("demo", **wanted)
    assert not (tmp_path / "out").exists()
    kept = modicum.fit("demo", **wanted, allow_broken=True).receipt
    found = kept["verification"]["generation"]
    assert found["failed"] and any(event.startswith("generation:") for event in kept["events"])
    assert json.loads(json.dumps(found)) == found


def test_what_takes_more_bits_or_writes_no_text_is_not_asked(tmp_path, demo):
    receipt = modicum.fit("demo", method="nearest bits=8 group=64", out=tmp_path / "out", **FEW).receipt
    assert "generation" not in receipt["verification"]
    assert generates(demo[0]) and not generates(open_model(torch.nn.Sequential(torch.nn.Linear(8, 8))))


def test_prompts_are_beginnings_without_padding(demo):
    model, ids = demo[0], torch.arange(120).view(3, 40)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    found = prompts_of(model, [{"input_ids": ids, "attention_mask": mask}])
    assert torch.equal(found, ids[[0, 2], :32])
    assert prompts_of(model, [{"input_ids": ids[:1]}]) is None
