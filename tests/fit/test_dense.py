"""A compressed result as a dense checkpoint: the same weights to the bit, loaded plainly; what has no dense form is refused in a sentence."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

import modicum
from modicum.cli.main import main
from modicum.core.errors import SettingError
from modicum.core.plan import Plan
from modicum.export.container import Container
from modicum.models.open import open_model
from modicum.sweep import rehearse
from modicum.testing import zoo

METHOD = "nearest bits=4 group=16"


def fitted(place, name, target, method=METHOD, **settings):
    """A result for a target, its original, and batches."""
    model, batches = zoo.build(name)
    model.save_pretrained(place / "original")
    (place / "original" / "README.md").write_text("---\nlicense: mit\n---\nA model.\n")
    (place / "original" / "tokenizer_config.json").write_text("{}")
    modicum.fit(place / "original", method=method, target=target, data=batches, out=place / "out", **settings)
    return batches[0]


def same(compressed, dense, batch):
    with torch.no_grad():
        return torch.equal(compressed(**batch).logits, dense(**batch).logits)


@pytest.mark.parametrize(
    "name, target", [("llama", "transformers"), pytest.param("qwen3_moe", "transformers", marks=pytest.mark.slow), ("gpt2", "modicum")]
)
def test_the_dense_model_has_the_same_weights_and_answers_alike_to_the_bit(tmp_path, name, target):
    batch = fitted(tmp_path, name, target)
    made = modicum.densify(tmp_path / "out", tmp_path / "dense")
    assert made.difference == 0 and made.notes == []
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype="auto").eval()
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "original", dtype="auto")
    assert {n: (p.shape, p.dtype) for n, p in dense.named_parameters()} == {n: (p.shape, p.dtype) for n, p in original.named_parameters()}
    compressed = modicum.load(tmp_path / "out")
    assert same(compressed, dense, batch)
    weights = dict(dense.named_parameters())
    assert all(
        torch.equal(value, weights[n]) for n, value in compressed.named_parameters() if n in weights and value.shape == weights[n].shape
    )
    assert any(not torch.equal(value, weights[n]) for n, value in original.named_parameters())
    names = {path.name for path in (tmp_path / "dense").iterdir()}
    assert "tokenizer_config.json" in names and not names & {"receipt.json", "plan.json", "modicum.json", "run.yaml"}
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    assert "license: mit" in (tmp_path / "dense" / "README.md").read_text()


def test_dropped_blocks_stay_away_and_cuts_are_zeros(tmp_path):
    model, batches = zoo.build("llama")
    original = open_model(model)
    target = Container(original, rehearse(original, batches[0]))
    gone = frozenset(list(original.blocks)[:1])
    (tmp_path / "out").mkdir()
    target.layout({}, {}, gone).write(tmp_path / "out")
    target.finish(tmp_path / "out", {}, gone)
    modicum.densify(tmp_path / "out", tmp_path / "dense")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype="auto").eval()
    assert dense.config.num_hidden_layers == model.config.num_hidden_layers - 1
    assert same(modicum.load(tmp_path / "out"), dense, batches[0])


@pytest.mark.slow
def test_inputs_in_eight_bits_are_told_to_be_gone(tmp_path):
    fitted(tmp_path, "llama", "transformers", "nearest bits=8 group=0 | activations")
    (note,) = modicum.densify(tmp_path / "out", tmp_path / "dense").notes
    assert "inputs are no longer rounded" in note


@pytest.mark.slow
def test_what_a_gguf_file_says_more_exactly_than_the_dtype_is_told(tmp_path):
    pytest.importorskip("gguf")
    model, batches = zoo.tied_twin()
    model.bfloat16().save_pretrained(tmp_path / "original")
    for file in (modicum.models.located.DEMO).glob("tokenizer*"):
        shutil.copy(file, tmp_path / "original")
    plan = Plan("gguf", {"model.layers.0.mlp.down_proj.weight": "ggml type=q4_0"})
    modicum.fit(tmp_path / "original", plan=plan, data=batches, out=tmp_path / "out")
    (note,) = modicum.densify(tmp_path / "out", tmp_path / "dense").notes
    assert "more digits in the file than bfloat16 holds" in note
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype="auto")
    assert dense.dtype == torch.bfloat16 and not torch.equal(
        dense.model.layers[0].mlp.down_proj.weight, model.model.layers[0].mlp.down_proj.weight
    )
    assert torch.equal(dense.model.layers[1].mlp.down_proj.weight, model.model.layers[1].mlp.down_proj.weight)


def test_refusals_are_one_sentence_and_leave_nothing(tmp_path):
    zoo.build("llama")[0].save_pretrained(tmp_path / "dense")
    (tmp_path / "empty").mkdir()
    cases = {
        "dense": "is dense already. Load it as it is.",
        "empty": "with its config.json, holds none",
        "none": "must be a folder that modicum wrote, is none",
    }
    for folder, said in cases.items():
        done = CliRunner().invoke(main, ["densify", str(tmp_path / folder), "--out", str(tmp_path / "new")])
        assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1
        assert not (tmp_path / "new").exists()
    config = tmp_path / "dense" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(SettingError, match="is quantized by gptq. Name a folder that fit wrote."):
        modicum.densify(tmp_path / "dense", tmp_path / "new")
