"""Plans: weights by layer and pattern, models from a base of their own, slices, and mergekit's files."""

import json

import pytest
import torch
from safetensors.torch import load_file

import modicum
from modicum.core.errors import ModelError, SettingError
from modicum.merging.plan import at, weight_of
from modicum.merging.reading import read_plan
from modicum.testing import zoo


def checkpoint(folder, seed=0, moved=0.0):
    model = zoo.build("llama")[0]
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += moved * torch.randn(parameter.shape, generator=draw)
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@pytest.fixture
def three(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return [checkpoint(tmp_path / name, seed, moved) for name, seed, moved in (("base", 0, 0), ("one", 1, 0.05), ("two", 2, 0.05))]


def made(tmp_path, text, **settings):
    (tmp_path / "plan.yaml").write_text(text)
    found = modicum.merge(out=tmp_path / "out", plan=tmp_path / "plan.yaml", overwrite=True, **settings)
    return found.receipt, load_file(found.out / "model.safetensors")


def test_weights_by_layer_and_pattern(three, tmp_path):
    base, one, _ = three
    layers = 1 + max(int(name.split(".")[2]) for name in base if ".layers." in name)
    text = "base: base\nmethod: task_arithmetic\nmodels:\n- model: one\n  weight: {'*mlp*': [0, 1], '*norm*': 0, '*': 0.5}\n"
    _, found = made(tmp_path, text)
    for name, value in found.items():
        weight = 0.0 if "norm" in name and "mlp" not in name else 0.5
        if "mlp" in name:
            weight = int(name.split(".")[2]) / (layers - 1)
        assert torch.allclose(value, base[name] + weight * (one[name] - base[name]), atol=1e-6), name


def test_what_a_model_learnt_from_a_base_of_its_own(three, tmp_path):
    base, one, two = three
    _, found = made(tmp_path, "base: base\nmethod: task_arithmetic\nmodels:\n- {model: one, minus: two, weight: 1}\n")
    assert all(torch.allclose(value, base[name] + one[name] - two[name], atol=1e-6) for name, value in found.items())


def test_slices_put_layers_one_after_the_other(three, tmp_path):
    base, one, two = three
    text = "method: passthrough\nslices:\n- {model: one, layers: [0, 2]}\n- {model: two, layers: [0, 2]}\n"
    receipt, found = made(tmp_path, text)
    assert json.loads((tmp_path / "out/config.json").read_text())["num_hidden_layers"] == 4 and receipt["verified"]["class"]
    name = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(found[name.format(1)], one[name.format(1)]) and torch.equal(found[name.format(3)], two[name.format(1)])
    assert torch.equal(found["model.embed_tokens.weight"], one["model.embed_tokens.weight"])
    assert torch.equal(found["model.norm.weight"], two["model.norm.weight"])
    theirs = """
merge_method: slerp
base_model: one
slices:
- sources: [{model: one, layer_range: [0, 1]}, {model: two, layer_range: [1, 2]}]
- sources: [{model: one, layer_range: [1, 2]}, {model: two, layer_range: [0, 1]}]
parameters: {t: [{filter: mlp, value: 1}, {value: 0}]}
"""
    _, found = made(tmp_path, theirs)
    assert torch.allclose(found[name.format(0)], two[name.format(1)], atol=1e-6)
    assert torch.allclose(found["model.layers.0.self_attn.q_proj.weight"], one["model.layers.0.self_attn.q_proj.weight"], atol=1e-6)


def test_a_file_of_mergekit_is_the_merge_it_asks_for(three, tmp_path):
    text = """
merge_method: ties
base_model: base
models:
- model: base
- {model: one, parameters: {weight: 0.3, density: 0.4}}
- {model: two, parameters: {weight: 0.7, density: 0.4}}
parameters: {int8_mask: true}
dtype: float32
"""
    receipt, found = made(tmp_path, text, verify=False)
    assert receipt["method"] == "ties density=0.4 compat=mergekit" and any("int8_mask" in event for event in receipt["events"])
    settings = {"method": "ties density=0.4 compat=mergekit", "weights": [0.3, 0.7], "verify": False}
    same = modicum.merge("base", ["one", "two"], tmp_path / "same", **settings)
    assert all(torch.equal(found[name], value) for name, value in load_file(same.out / "model.safetensors").items())


def test_weights_are_drawn_over_the_layers():
    weight = weight_of(["0", "1", "0"], "w")
    assert [at(weight, f"model.layers.{layer}.w", 5) for layer in range(5)] == [0, 0.5, 1, 0.5, 0]
    assert at(weight, "model.norm.weight", 5) == 0


TWO = [f"{{model: {name}, parameters: {{density: {density}}}}}" for name, density in (("a", 0.1), ("c", 0.2))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a", "must be a table"), ("base: demo\nmodel: [a]", "a plan has no 'model'"), ("base: demo", "must have models or slices, has neither"),
        ("models: [{model: a, wieght: 1}]\nbase: b", "a model has no 'wieght'"),
        ("base: b\nmodels: [{model: a, weight: x}]", "must be a finite number"),
        ("base: b\nmodels: [{model: a, weight: .nan}]", "must be a finite number"),
        ("base: b\nmodels: [{model: a, weight: 1e999}]", "must be a finite"),
        ("slices: [{model: a, layers: [3, 1]}]", "must begin at 0 or later"), ("slices: [{model: a}]", "must all have layers"),
        ("base: b\nmodels: [{model: a, layers: [0, 1]}]", "a must be merged whole, and names layers"),
        ("merge_method: linear\nmodels: [{model: a, layer_range: [0, 1]}]", "a must be merged whole, and names layers"),
        ("base: b\nbase: c\nmodels: [a]", "a name comes twice"), ("a: &x [1]\nb: *x", "stands for another"),
        ("merge_method: nuslerp\nmodels: [{model: a}]", "'nuslerp' is not had here"),
        ("merge_method: ties\nmodels: [{model: a}]", "base_model must be said"),
        (f"merge_method: ties\nbase_model: b\nmodels: [{', '.join(TWO)}]", "must be one for all"),
        ("merge_method: task_arithmetic\nbase_model: b\nparameters: {normalize: true}\nmodels: [{model: a}]", "normalize true is not had"),
        ("merge_method: linear\nchat_template: x\nmodels: [{model: a}]", "'chat_template' is not understood"),
        ("merge_method: linear\nmodels: [{model: a+b}]", "names an adapter"),
        ("base: b\nmodels: [a]\ntokenizer: [union]", "tokenizer: must be a text"),
        ("merge_method: linear\nbase_model: b\ntokenizer_source: {a: b}\nmodels: [{model: a}]", "tokenizer_source: must be a text"),
    ],
)  # fmt: skip
def test_a_plan_that_lies_is_told(text, words, tmp_path):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(SettingError, match=words):
        read_plan(tmp_path / "p.yaml")


def test_what_does_not_fit_is_told(three, tmp_path):
    for text, words in (
        ("method: ties\nslices:\n- {model: one, layers: [0, 2]}\n", "reads a base"),
        ("method: passthrough\nslices:\n- {model: one, layers: [0, 9]}\n", "has no layer"),
        ("base: base\nmethod: ties\nmodels:\n- {model: one, weight: {'*mlp*': 1}}\n", "no pattern fits"),
        ("base: base\nmethod: ties\nmodels:\n- {model: one, weight: [1, -1]}\n", "weights are shares"),
    ):
        with pytest.raises(SettingError, match=words):
            made(tmp_path, text)
    for settings in ({"weights": [0.5]}, {"method": "dare"}, {"seed": 3}):
        with pytest.raises(SettingError, match=f"{next(iter(settings))}: is said by the plan"):
            made(tmp_path, "base: base\nmodels: [one]\n", **settings)


def test_layers_are_put_together_whatever_their_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("qwen3_moe", "t5", "gpt2", "llama"):
        zoo.build(name)[0].save_pretrained(tmp_path / name)
    slices = "method: passthrough\nslices:\n- {{model: {0}, layers: [0, 2]}}\n- {{model: {0}, layers: [0, 2]}}\n"
    receipt, _ = made(tmp_path, slices.format("qwen3_moe"))  # dense layers among those with experts
    assert receipt["verified"]["parameters"] > 0
    with pytest.raises(ModelError, match="t5: must have one stack of layers to be sliced, has decoder.block. and encoder.block."):
        made(tmp_path, slices.format("t5"))
    with pytest.raises(ModelError, match="gpt2: its layers must be called model.layers. as those of llama, are transformer.h."):
        made(tmp_path, "method: passthrough\nslices:\n- {model: llama, layers: [0, 2]}\n- {model: gpt2, layers: [0, 2]}\n")


def test_what_was_merged_is_taken_out_again(three, tmp_path):
    """What a model changed of its base, with its weight turned round: the base, up to the rounding of what was stored between."""
    base, one, two = three
    made(tmp_path, "base: base\nmethod: task_arithmetic\nmodels:\n- {model: one, weight: 0.5}\n- {model: two, weight: 0.3}\n")
    (tmp_path / "out").rename(tmp_path / "merged")
    text = "base: merged\nmethod: task_arithmetic\nmodels:\n- {model: one, minus: base, weight: -0.5}\n- {model: two, minus: base, weight: -0.3}\n"
    _, found = made(tmp_path, text)
    eps = torch.finfo(torch.float32).eps
    for name, value in found.items():
        sizes = torch.stack([each[name].abs() for each in three]).amax(0)
        assert bool(((value - base[name]).abs() <= eps * sizes).all()), name
