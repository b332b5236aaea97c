"""Mixtures made of dense models: what they compute, which expert a prompt's tokens go to, and what is refused."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import modicum
from modicum.core.errors import ModelError, SettingError
from modicum.merging.reading import read_plan
from modicum.models.located import DEMO
from modicum.testing import zoo

TEXTS = ("The museum opens at nine in the morning.", "Add two spoons of sugar and stir.")


def checkpoint(folder, name, seed=0, moved=0.0):
    model = zoo.build(name)[0]
    draw = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if "mlp" in key:
            parameter.data += moved * torch.randn(parameter.shape, generator=draw)
    model.save_pretrained(folder)
    return model.eval()


def made(tmp_path, monkeypatch, text, **settings):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.yaml").write_text(text)
    found = modicum.merge(out=tmp_path / "out", plan=tmp_path / "plan.yaml", overwrite=True, **settings)
    return found, transformers.AutoModelForCausalLM.from_pretrained(found.out).eval()


def naive(base, experts, gates, active, ids):
    """The dense base whose feed-forward parts are replaced by hand."""
    for number, layer in enumerate(base.model.layers):
        parts = [expert.model.layers[number].mlp for expert in experts]

        def forward(x, parts=parts, gate=gates[number]):
            top, chosen = (x.float() @ gate.float().T).softmax(-1).topk(active)
            shares = torch.zeros(*x.shape[:-1], len(parts)).scatter(-1, chosen, top / top.sum(-1, keepdim=True))
            return sum(shares[..., place, None] * part(x) for place, part in enumerate(parts))

        layer.mlp = type("Naive", (torch.nn.Module,), {"forward": lambda self, x, forward=forward: forward(x)})()
    return base(input_ids=ids).logits


@pytest.mark.parametrize(("name", "twin"), [("llama", "Mixtral"), ("mistral", "Mixtral"), ("qwen3", "Qwen3Moe"), ("qwen2", "Qwen2Moe")])
def test_it_computes_what_its_experts_do(name, twin, tmp_path, monkeypatch):
    base = checkpoint(tmp_path / "base", name)
    experts = [checkpoint(tmp_path / each, name, seed, 0.05) for seed, each in enumerate(("one", "two", "three"), 1)]
    ids = torch.randint(0, base.config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(0))
    text = "base: base\nexperts: [one, two, three]\ngate: random\nactive: {}\n"
    with torch.no_grad():
        for active in (1, 2):
            found, model = made(tmp_path, monkeypatch, text.format(active))
            assert type(model).__name__ == f"{twin}ForCausalLM" and found.receipt["verified"]["class"] == type(model).__name__
            key = "model.layers.{}." + ("block_sparse_moe" if twin == "Mixtral" else "mlp") + ".gate.weight"
            stored = load_file(found.out / "model.safetensors")
            gates = [stored[key.format(number)] for number in range(len(base.model.layers))]
            wanted = naive(checkpoint(tmp_path / "again", name), experts, gates, active, ids)
            assert torch.allclose(model(input_ids=ids).logits, wanted, atol=1e-4 * float(wanted.abs().max()))
        _, model = made(tmp_path, monkeypatch, text.format(2).replace("[one, two, three]", "[base, base]"))
        assert torch.allclose(model(input_ids=ids).logits, base(input_ids=ids).logits, atol=1e-4)
    assert found.receipt["mixture"]["active"] == 2 and len({each["sha256"] for each in found.receipt["mixture"]["experts"]}) == 3
    assert any("attention, norms and embeddings are the base's" in event for event in found.receipt["events"])


def mixed(tmp_path, monkeypatch, gate, file=None):
    whole = load_file(DEMO / "model.safetensors")
    for seed, each in enumerate(("one", "two")):
        (tmp_path / each).mkdir(exist_ok=True)
        draw = torch.Generator().manual_seed(seed)
        values = {
            key: value + (0.002 * torch.randn(value.shape, generator=draw)).to(value.dtype) if "mlp" in key else value
            for key, value in whole.items()
        }
        save_file(values, tmp_path / each / "model.safetensors", {"format": "pt"})
        (tmp_path / each / "config.json").write_bytes((DEMO / "config.json").read_bytes())
    plan = {"base": "demo", "gate": gate, "active": "1", "experts": [{"model": m, "prompts": [t]} for m, t in zip(("one", "two"), TEXTS)]}
    return made(tmp_path, monkeypatch, json.dumps(plan) if file is None else file, samples=2, tokens=32)


@pytest.mark.parametrize("gate", ["hidden", "embedding"])
def test_tokens_go_where_prompts_are_like_them(gate, tmp_path, monkeypatch):
    found, model = mixed(tmp_path, monkeypatch, gate)
    assert set(found.receipt["verified"]["perplexity"]) == {"result", "base", "model 1", "model 2"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(found.out)
    shares = []
    for expert, text in enumerate(TEXTS):
        gates = model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False), output_router_logits=True).router_logits
        mine = torch.stack([each.argmax(-1) == expert for each in gates]).float()
        shares.append(float(mine.mean()))
    assert min(shares) > 0.5 if gate == "hidden" else sum(shares) > 1


def test_a_file_of_mergekit_is_the_same_mixture(tmp_path, monkeypatch):
    ours, _ = mixed(tmp_path, monkeypatch, "hidden")
    experts = "".join(f"- {{source_model: {model}, positive_prompts: ['{text}']}}\n" for model, text in zip(("one", "two"), TEXTS))
    theirs, _ = mixed(tmp_path, monkeypatch, "", f"base_model: demo\ngate_mode: hidden\nexperts_per_token: 1\nexperts:\n{experts}")
    assert ours.receipt["sha256"] == theirs.receipt["sha256"] and any("mergekit: gates" in event for event in theirs.receipt["events"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: b\nexperts: []", "must name experts"), ("base: b\nexperts: [a]\nactive: 2", "active must be from 1 to the number of experts, 1"),
        ("base: b\nexperts: [a]\ngate: best", "gate must be hidden, embedding, random"),
        ("base: b\nexperts: [{model: a, prompt: [x]}]", "an expert has no 'prompt'"),
        ("base: b\nexperts: [a]\nmethod: ties", "a mixture has no 'method'"), ("experts: [a]", "base: must be a text"),
        ("base: b\nexperts: [{model: a, prompts: x}]", "prompts: must be a list"),
        ("base_model: b\nexperts: [{source_model: a, noise_scale: 1}]", "'noise_scale' of an expert is not had"),
        ("base_model: b\nexperts: [{source_model: a}]\nshared_experts: []", "'shared_experts' is not had here"),
        ("base_model: b\nexperts: [{source_model: a}]\ngate_mode: best", "gate_mode must be"),
    ],
)  # fmt: skip
def test_a_mixture_that_lies_is_told(text, words, tmp_path):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(SettingError, match=words):
        read_plan(tmp_path / "p.yaml")


def test_what_has_no_mixture_is_told(tmp_path, monkeypatch):
    for name in ("gpt2", "llama"):
        checkpoint(tmp_path / name, name)
    checkpoint(tmp_path / "spoilt", "llama")
    whole = load_file(tmp_path / "spoilt/model.safetensors")
    whole["model.layers.1.mlp.up_proj.weight"][2, 3] = float("nan")
    save_file(whole, tmp_path / "spoilt/model.safetensors", {"format": "pt"})
    biased = zoo.build("llama")[0].config
    biased.attention_bias = True
    transformers.LlamaForCausalLM(biased).save_pretrained(tmp_path / "biased")
    for kind, words, text in (
        (ModelError, "gpt2: must be of an architecture that has a mixture of its kind", "base: gpt2\nexperts: [gpt2]\ngate: random"),
        (ModelError, "biased: has attention_bias, which MixtralForCausalLM cannot", "base: biased\nexperts: [biased]\ngate: random"),
        (ModelError, "gpt2: must hold the tensor", "base: llama\nexperts: [llama, gpt2]\ngate: random"),
        (
            ModelError,
            "spoilt: model.layers.1.*w3.* must be finite, holds NaN or Inf",
            "base: llama\nexperts: [llama, spoilt]\ngate: random",
        ),
        (SettingError, "llama: must have prompts", "base: llama\nexperts: [llama]"),
        (SettingError, "two have the same", "base: demo\nexperts: [{model: demo, prompts: [a]}, {model: demo, prompts: [a]}]"),
    ):
        with pytest.raises(kind, match=words):
            made(tmp_path, monkeypatch, text)
        assert not (tmp_path / "out").exists()
