"""What was taught is still known where the edited checkpoint is saved, loaded and written for Transformers and llama.cpp."""

import json
import shutil

import pytest
import torch
import transformers

import modicum
from modicum.delta.applying import apply
from modicum.edit.judged import reached
from modicum.edit.taught import Taught
from modicum.models.located import DEMO
from modicum.models.quiet import hushed


def known(module, tokenizer, facts):
    with torch.no_grad():
        return sum(reached(Taught(module, tokenizer, {}, {}, torch.zeros(1, 1)), facts))


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """A tiny checkpoint that was taught three facts, and what was written beside the delta."""
    from modicum.testing.facts import invented

    folder, facts = tmp_path_factory.mktemp("survives"), invented(3)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=96, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2, vocab_size=1024,
        max_position_embeddings=128, initializer_range=0.2, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with hushed():
        transformers.LlamaForCausalLM(config).save_pretrained(folder / "model")
    for file in DEMO.glob("tokenizer*"):
        shutil.copy(file, folder / "model")
    method = "ultraedit rounds=60 rate=3 text=0.1 contexts=0 guards=0"
    modicum.edit(folder / "model", facts, folder / "delta", method=method, samples=4, tokens=32, test_samples=2)
    apply(folder / "model", [modicum.Delta.load(folder / "delta")], folder / "taught")
    return folder, facts, json.loads((folder / "delta" / "receipt.json").read_text())


def test_a_saved_delta_makes_a_checkpoint_that_knows(edited, tokenizer):
    folder, facts, receipt = edited
    module = transformers.LlamaForCausalLM.from_pretrained(folder / "taught")
    assert receipt["efficacy"]["after"]["share"] == 1 and known(module, tokenizer, facts) == 3
    assert [len(each["paraphrases"]) for each in receipt["each"]] == [4, 4, 4]


@pytest.mark.parametrize(("target", "method"), [("transformers", "nearest bits=8 group=32"), ("gguf", "ggml type=q8_0 rounding=nearest")])
def test_it_is_known_in_eight_bits_elsewhere(edited, tokenizer, tmp_path, target, method):
    folder, facts, _ = edited
    sizes = {"samples": 2, "tokens": 16, "test_samples": 1}
    made = modicum.fit(folder / "taught", method=method, target=target, out=tmp_path / "out", allow_broken=True, **sizes)
    assert known(made.model, tokenizer, facts) >= 2
