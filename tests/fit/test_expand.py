"""Codes of the container for Transformers: the same whole numbers, weight for weight the same values, and outputs to the bit."""

import json
import shutil

import pytest
import torch

import modicum
from modicum.core.errors import ModelError
from modicum.core.plan import Plan
from modicum.export.expand import forms_of
from modicum.fit.expand import expanded, holds_codes
from modicum.models.located import DEMO
from modicum.testing import tiny

DATA = {"samples": 4, "tokens": 32, "test_samples": 2, "micro_batch": 2}


def made(name, place, **changed):
    """A tiny model in bfloat16 on disk, with a tokenizer, and a container of it at two bits per weight."""
    config = tiny.config_for(name)
    for key, value in {"vocab_size": 4096, "tie_word_embeddings": False, **changed}.items():
        setattr(config, key, value)
    tiny._built(name, config, 0).to(torch.bfloat16).save_pretrained(place / "model")
    for file in DEMO.glob("tokenizer*"):
        shutil.copy(file, place / "model")
    return modicum.fit(place / "model", method="watersic rate=2", target="modicum", out=place / "codes", **DATA)


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    place = tmp_path_factory.mktemp("expand")
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_hidden_layers": 2,
    }
    made("LlamaForCausalLM", place, **sizes)
    return place


@pytest.fixture(scope="module")
def whole(codes):
    plan = Plan.read(codes / "codes" / "plan.json")
    return expanded(codes / "codes", str(codes / "model"), plan, out=codes / "whole", dense=True, **DATA)


def test_what_was_turned_beside_the_codes_goes_with_them(codes, tmp_path):
    """Norms and tables are the container's, not the model's."""
    words = {"rotate": "hadamard", "smooth": 0.5, "keep": ["lm_head", "model.embed_tokens"], "allow_broken": True}
    modicum.fit(codes / "model", method="watersic rate=3", target="modicum", out=tmp_path / "turned", **words, **DATA)
    plan = Plan.read(tmp_path / "turned" / "plan.json")
    found = expanded(tmp_path / "turned", str(codes / "model"), plan, out=tmp_path / "whole", dense=True, allow_broken=True, **DATA).receipt
    before = json.loads((tmp_path / "turned" / "receipt.json").read_text())
    assert torch.equal(logits(tmp_path / "turned"), logits(tmp_path / "whole"))
    assert found["quality"]["mean"] == pytest.approx(before["quality"]["mean"], rel=1e-3)
    assert sum("beside the codes are the container's" in event for event in found["events"]) == 1


def run(module):
    with torch.no_grad():
        return module(torch.arange(90).view(2, 45) * 37 % 4096).logits


def logits(directory):
    return run(modicum.load(directory))


def test_the_directory_answers_in_transformers_as_the_container_does_to_the_bit(codes, whole):
    assert torch.equal(logits(codes / "codes"), logits(codes / "whole"))
    before = json.loads((codes / "codes" / "receipt.json").read_text())
    assert whole.receipt["quality"]["mean"] == before["quality"]["mean"] > 0
    assert whole.receipt["verification"]["loader"] == "transformers.from_pretrained"
    assert any("moved into what makes the input of 8 sets" in event for event in whole.receipt["events"])


def test_each_weight_is_that_of_the_container_times_powers_of_two(codes, whole):
    module = modicum.load(codes / "whole")
    run(module)  # packed weights are unpacked at first use
    for unit, form in forms_of(codes / "codes"):
        ours, theirs = form.dense().double(), module.get_parameter(unit.parameter).detach().double()
        there = ours != 0
        octaves = (theirs[there] / ours[there]).log2()
        assert torch.equal(there, theirs != 0) and torch.equal(octaves, octaves.round())


def test_what_no_target_reads_in_whole_numbers_is_written_whole_on_wish_alone(codes, whole):
    plan = Plan.read(codes / "codes" / "plan.json")
    with pytest.raises(
        ModelError, match=r"model.embed_tokens.weight cannot be whole numbers for target transformers, embedding. Pass --dense"
    ):
        expanded(codes / "codes", str(codes / "model"), plan, out=codes / "none", **DATA)
    assert not (codes / "none").exists() and not (codes / "none.partial").exists()
    assert "export: 1 weights are written whole: model.embed_tokens.weight, embedding" in whole.receipt["events"]


def test_a_container_tells_whether_it_holds_codes(codes, whole):
    assert holds_codes(codes / "codes") and not holds_codes(codes / "whole") and not holds_codes(codes / "model")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Qwen3ForCausalLM", "Gemma2ForCausalLM", "OPTForCausalLM", "GPTNeoXForCausalLM", "Phi3ForCausalLM"])
def test_other_architectures_answer_as_their_containers_do(name, tmp_path):
    made(name, tmp_path)
    plan = Plan.read(tmp_path / "codes" / "plan.json")
    expanded(tmp_path / "codes", str(tmp_path / "model"), plan, out=tmp_path / "whole", dense=True, **DATA)
    assert torch.equal(logits(tmp_path / "codes"), logits(tmp_path / "whole"))
