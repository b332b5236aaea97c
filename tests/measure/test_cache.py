"""Keys and values in eight bits: the scales of the largest, the arithmetic of Transformers' loader, and who cannot have it."""

import copy
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import modicum
from modicum.core.errors import ModelError, SettingError
from modicum.measure.cache import cached
from modicum.measure.settings import Settings
from modicum.measure.subject import Subject
from modicum.models.cached import rounded

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
MORE = {"num_key_value_heads": 2, "max_position_embeddings": 32}


def made(config=transformers.LlamaConfig, dtype=torch.float32, **sizes):
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(config(**(sizes or SIZES | MORE)), dtype=dtype).eval()
    for name, value in module.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            nn.init.normal_(value, std=0.7)
    return module


def batches(count=6, tokens=16):
    draw = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(3, 64, (2, tokens), generator=draw)} for _ in range(count)]


def scales(folder):
    return {name: value for name, value in load_file(folder / "model.safetensors").items() if name.endswith((".k_scale", ".v_scale"))}


def test_a_value_is_rounded_as_the_loader_rounds_it():
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    asked = QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy="tensor", dynamic=False)
    for dtype in (torch.float32, torch.bfloat16):
        value, scale = torch.randn(2, 4, 9, 8).to(dtype), torch.tensor([0.004]).to(dtype)
        assert torch.equal(rounded(scale, value), fake_quantize(value, scale, torch.zeros(1), asked))


def test_scales_are_the_largest_of_keys_after_positions_and_of_values():
    module = made()
    subject = Subject.open(copy.deepcopy(module), Settings(compute="float32"), batches())
    found, lost, told = cached(subject.model, subject.script, subject.data.calibration, subject.compute)
    keys, values = [], []
    for batch in subject.data.calibration:
        with torch.no_grad():
            layer = module(**batch, use_cache=True).past_key_values.layers[1]
        keys.append(layer.keys.abs().amax())
        values.append(layer.values.abs().amax())
    attention = found.module.model.layers[1].self_attn
    assert attention.k_scale == pytest.approx(float(max(keys)) / 448) and attention.v_scale == pytest.approx(float(max(values)) / 448)
    assert lost > 0 and f"that loses {lost:.1e} " in told[0]
    assert told[0].startswith("kv: keys and values of 2 attentions are rounded to 8-bit floats under static scales; alone that loses ")
    assert found.hash() == subject.model.hash() and not any("k_scale" in name for name, _ in subject.model.module.named_buffers())


@pytest.mark.parametrize(("target", "dtype"), [("transformers", torch.bfloat16), ("vllm", torch.float32)])
def test_files_hold_scales_and_load_to_what_was_judged(tmp_path, target, dtype):
    module, lost = made(dtype=dtype), {}
    for kv in (None, "fp8"):
        result = modicum.fit(
            copy.deepcopy(module), data=batches(), out=tmp_path / str(kv), target=target, method="nearest bits=8 group=0", kv=kv,
            keep=["lm_head"], allow_broken=True,
        )  # fmt: skip
        lost[kv], bytes_ = result.receipt["quality"]["mean"], result.receipt["bytes"]
        assert bytes_["actual"] == bytes_["predicted"] and result.receipt["request"]["kv"] == kv
        assert result.receipt["verification"]["logits"]["largest"] < 1e-3
    found = scales(tmp_path / "fp8")
    assert (
        len(found) == 4 and all(value.shape == (1,) and value.dtype == dtype for value in found.values()) and not scales(tmp_path / "None")
    )
    said = json.loads((tmp_path / "fp8" / "config.json").read_text())["quantization_config"]["kv_cache_scheme"]
    assert (said["num_bits"], said["type"], said["strategy"], said["dynamic"], said["symmetric"]) == (8, "float", "tensor", False, True)
    assert lost["fp8"] > 1.5 * lost[None]
    judged = modicum.evaluate(tmp_path / "fp8", reference=copy.deepcopy(module), data=batches()[4:])["quality"]["mean"]
    assert judged == pytest.approx(lost["fp8"], rel=0.5)


def test_a_model_may_have_nothing_but_its_cache_rounded(tmp_path):
    result = modicum.fit(
        made(), data=batches(30, 32), out=tmp_path / "a", target="transformers", size="10MB", menu="float8", kv="fp8", keep=["*"]
    )
    assert result.receipt["verification"]["logits"]["largest"] < 1e-4 and result.receipt["quality"]["mean"] > 0
    assert 0.67 < result.receipt["predicted_harm"] / result.receipt["quality"]["mean"] < 1.5
    loaded, ids = modicum.load(tmp_path / "a"), batches()[0]["input_ids"]
    with torch.no_grad():
        whole = loaded(input_ids=ids, use_cache=True).logits
        assert not torch.allclose(whole, made()(input_ids=ids).logits, atol=1e-4)
        first = loaded(input_ids=ids[:, :9], use_cache=True)
        name = "cache" if "cache" in first else "past_key_values"
        assert torch.allclose(
            loaded(input_ids=ids[:, 9:], **{name: first[name]}).logits, whole[:, 9:], atol=1e-5
        )  # the cache holds what was rounded


def test_files_with_other_scales_are_refused(tmp_path):
    modicum.fit(
        made(), data=batches(), out=tmp_path / "a", target="transformers", method="nearest bits=8 group=0", kv="fp8", allow_broken=True
    )
    path = tmp_path / "a" / "model.safetensors"
    held = load_file(path)
    name = "model.layers.1.self_attn.k_scale"
    for other in (torch.zeros(1), torch.ones(2), torch.full((1,), float("nan")), torch.ones(1, dtype=torch.int32), None):
        spoilt = {key: value for key, value in held.items() if key != name} | ({} if other is None else {name: other})
        save_file(spoilt, path, {"format": "pt"})
        with pytest.raises(ModelError, match="must be an attention with one positive scale for keys and one for values, is not"):
            modicum.load(tmp_path / "a")
    save_file(held | {"model.layers.0.mlp.k_scale": torch.ones(1)}, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"mlp'?: must be an attention with one positive scale"):
        modicum.load(tmp_path / "a")


def test_who_cannot_have_it_is_told():
    with pytest.raises(SettingError, match="kv fp8: must stand beside --target transformers or vllm, whose loaders round a cache"):
        modicum.fit(made(), data=batches(), target="modicum", method="nearest bits=8", kv="fp8")
    with pytest.raises(SettingError, match="kv: must not stand beside uniform"):
        modicum.fit(made(), data=batches(), target="transformers", bpw=9, kv="fp8", uniform=True)
    mamba = made(transformers.MambaConfig, vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4)
    with pytest.raises(ModelError, match="must have attentions with projections that runtimes have scales of a cache for"):
        modicum.fit(mamba, data=batches(), target="transformers", method="nearest bits=8 group=0", kv="fp8")
