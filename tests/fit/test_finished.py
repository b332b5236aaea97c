"""A finished result is healed in its own bytes: containers, compressed-tensors and pruned checkpoints, their originals found by the receipt."""

import json
import shutil

import pytest
import torch
from tests.train.killed import Killed
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

import modicum
from modicum.core.errors import ModelError, SettingError
from modicum.core.tensorfile import Shards
from modicum.export.gguf.reader import GgufFile
from modicum.fit.finished import heal
from modicum.models.located import DEMO
from modicum.train import Loop

LOOP = Loop(steps=4, batch=2, rate=3e-3, every=2)
SMALL = {"samples": 8, "tokens": 32, "test_samples": 8}
PLANS = {"modicum": "nearest bits=2", "transformers": "nearest bits=2 group=16"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What ``fit`` made of a tiny model for both targets, and the same model pruned by hand, beside the model and its text."""
    made = tmp_path_factory.mktemp("results")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=64, initializer_range=0.2, dtype=torch.bfloat16,
    )  # fmt: skip
    model = LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(made / "model")
    AutoTokenizer.from_pretrained(DEMO).save_pretrained(made / "model")
    (made / "text.txt").write_text("\n\n".join(f"def part_{n}(x):\n    return x * {n * n} + {n}" for n in range(400)), encoding="utf-8")
    for target, method in PLANS.items():
        modicum.fit(
            str(made / "model"), method=method, target=target, out=made / target, allow_broken=True, data=str(made / "text.txt"), **SMALL
        )
    for name, value in model.named_parameters():
        if "proj" in name:
            value.data[value.abs() < value.abs().float().median()] = 0
    model.save_pretrained(made / "pruned")
    return made


def tensors(folder):
    with Shards(folder) as shards:
        return {name: shards.read(name) for name in shards.names()}


@pytest.mark.parametrize("kind", ["modicum", "transformers", "pruned"])
def test_what_moves_are_numbers_and_all_else_stays(results, tmp_path, kind):
    source = results / kind
    words = {"reference": results / "model", "data": results / "text.txt", **SMALL} if kind == "pruned" else {}
    before = {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()}
    made = heal(source, tmp_path / "healed", loop=LOOP, **words)
    told = made.healing
    assert told["taken"] and len(told["losses"]) == 4 and told["test"]["after"] < told["test"]["before"]
    assert {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()} == before
    old, new = tensors(source), tensors(made.out)
    assert old.keys() == new.keys() and [path.stat().st_size for path in sorted(source.glob("*.safetensors"))] == [
        path.stat().st_size for path in sorted(made.out.glob("*.safetensors"))
    ]
    moved = {name for name, value in old.items() if not torch.equal(value, new[name])}
    assert moved and any("norm" in name for name in moved)
    if kind == "pruned":
        assert all(torch.equal(value == 0, new[name] == 0) for name, value in old.items() if "proj" in name)
    else:
        assert all(name.endswith((":scale", "_scale")) or "norm" in name for name in moved)
    saved = json.loads((made.out / "receipt.json").read_text(encoding="utf-8"))
    assert saved["healing"]["losses"] == told["losses"] and saved["quality"]["mean"] == pytest.approx(told["test"]["after"])


def test_a_killed_healing_goes_on_with_the_same_bytes(results, tmp_path):
    wanted = heal(results / "modicum", tmp_path / "a", loop=LOOP)
    with pytest.raises(KeyboardInterrupt):
        heal(results / "modicum", tmp_path / "b", loop=LOOP, progress=Killed(3))
    made = heal(results / "modicum", tmp_path / "b", loop=LOOP)
    assert made.healing["losses"] == wanted.healing["losses"]
    assert all(torch.equal(value, tensors(made.out)[name]) for name, value in tensors(wanted.out).items())


def test_what_gets_no_better_is_left_as_it_was(results, tmp_path):
    made = heal(results / "modicum", tmp_path / "x", loop=Loop(steps=2, batch=2, rate=50.0))
    assert not made.healing["taken"] and made.healing["events"]
    assert all(torch.equal(value, tensors(made.out)[name]) for name, value in tensors(results / "modicum").items())


def test_another_original_is_told(results, tmp_path):
    other = shutil.copytree(results / "pruned", tmp_path / "other")
    AutoTokenizer.from_pretrained(DEMO).save_pretrained(other)
    made = heal(results / "modicum", tmp_path / "x", loop=LOOP, reference=other)
    assert any("is another model than the one that it was made of, model.safetensors differs" in told for told in made.receipt["events"])
    made = heal(results / "modicum", tmp_path / "y", loop=LOOP)
    assert not any("another model" in told for told in made.receipt["events"])


def test_what_cannot_be_is_told_in_words(results, tmp_path):
    with pytest.raises(SettingError, match="has no receipt that names its original"):
        heal(results / "pruned", tmp_path / "x", loop=LOOP)
    with pytest.raises(SettingError, match="exists already"):
        heal(results / "modicum", results / "transformers", loop=LOOP)
    with pytest.raises(SettingError, match="must be one trained step"):
        heal(results / "modicum", tmp_path / "x", method="gptq bits=2", loop=LOOP)
    with pytest.raises(ModelError, match="no such directory"):
        heal(tmp_path / "nothing", tmp_path / "x", loop=LOOP)


def test_a_classifier_heals_by_what_its_original_answers(tmp_path):
    torch.manual_seed(0)
    shape = {"vocab_size": 1024, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertForSequenceClassification(BertConfig(**shape, num_labels=5, max_position_embeddings=64, initializer_range=0.3))
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(DEMO).save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("\n\n".join(f"def part_{n}(x):\n    return x * {n * n}" for n in range(400)), encoding="utf-8")
    modicum.fit(
        str(tmp_path / "model"), method="nearest bits=2", target="modicum", out=tmp_path / "small", allow_broken=True,
        data=str(tmp_path / "text.txt"), **SMALL,
    )  # fmt: skip
    made = heal(tmp_path / "small", tmp_path / "healed", loop=Loop(steps=8, batch=2, rate=3e-3, every=4))
    assert made.healing["taken"] and made.healing["test"]["after"] < made.healing["test"]["before"]
    assert (made.out / "model.safetensors").stat().st_size == (tmp_path / "small" / "model.safetensors").stat().st_size
    with pytest.raises(ModelError, match="must be of the class of its original"):
        heal(tmp_path / "small", tmp_path / "x", loop=LOOP, reference="demo", **SMALL)


def test_a_file_for_llama_cpp_heals_in_its_vectors_alone(results, tmp_path):
    pytest.importorskip("gguf")
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=1024, max_position_embeddings=64, initializer_range=0.2, **shape))
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(DEMO).save_pretrained(tmp_path / "model")
    modicum.fit(
        str(tmp_path / "model"), method="ggml type=q4_0", target="gguf", out=tmp_path / "small", allow_broken=True, data=str(results / "text.txt"),
        **SMALL,
    )  # fmt: skip
    before = GgufFile(tmp_path / "small" / "model.gguf")
    old = {name: before.read(name) for name in before.tensors}
    made = heal(tmp_path / "small", tmp_path / "healed", loop=Loop(steps=6, batch=2, rate=3e-3, every=3))
    assert (
        made.healing["taken"]
        and made.healing["test"]["after"] < made.healing["test"]["before"]
        and set(made.healing["methods"]) == {"norms"}
    )
    after = GgufFile(made.out / "model.gguf")
    moved = {name for name in old if not torch.equal(old[name], after.read(name))}
    assert moved and all(name.endswith("norm.weight") for name in moved)
    assert (made.out / "model.gguf").stat().st_size == (tmp_path / "small" / "model.gguf").stat().st_size
