"""Every way in which users of Transformers load a result: what the receipt says of each is what they get."""

import pytest
import torch
from transformers import CompressedTensorsConfig

import modicum
from modicum.core.plan import Plan
from modicum.testing import zoo

BATCH = torch.arange(32).reshape(2, 16)


def fitted(tmp_path, down):
    """A Llama whose weights have eight bits, those of feed-forward layers' last projections as ``down`` says."""
    model, batches = zoo.build("llama")
    plan = Plan("transformers", {"lm_head.weight": "nearest bits=8 group=16"})
    names = [name.removesuffix(".weight") for name, value in model.named_parameters() if value.ndim == 2 and "layers" in name]
    plan.options |= {f"{name}.weight": f"nearest {down if 'down' in name else 'bits=8 group=16'}" for name in names if "down" in name}
    return model, modicum.fit(model, plan=plan, data=batches, out=tmp_path / "out")


def decoded(model, out):
    return type(model).from_pretrained(out, dtype="auto", quantization_config=CompressedTensorsConfig(dequantize=True)).eval()


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
def test_one_scheme_is_the_same_however_it_is_loaded(tmp_path):
    model, result = fitted(tmp_path, "bits=8 group=16")
    told = result.receipt["verification"]
    assert told["dequantize=True"] == {"result": "the same", "largest": pytest.approx(0, abs=1e-6)}
    plain = type(model).from_pretrained(tmp_path / "out", dtype="auto").eval()
    with torch.no_grad():
        assert torch.allclose(plain(BATCH).logits, decoded(model, tmp_path / "out")(BATCH).logits, atol=1e-5)


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize("down", ["bits=4 group=16", "bits=4 group=0"])
def test_of_mixed_schemes_the_receipt_says_what_decoding_while_loading_gives(tmp_path, down):
    model, result = fitted(tmp_path, down)
    told = result.receipt["verification"]
    assert told["logits"]["largest"] < 1e-6  # as it is loaded plainly
    found = told["dequantize=True"]
    try:
        other = decoded(model, tmp_path / "out")
    except Exception:
        assert found["result"] == "fails" and found["why"]
        return
    plain = type(model).from_pretrained(tmp_path / "out", dtype="auto").eval()
    with torch.no_grad():
        same = torch.allclose(plain(BATCH).logits, other(BATCH).logits, atol=1e-3)
    assert found["result"] == ("the same" if same else "wrong")


def test_what_is_not_quantized_is_loaded_in_one_way(tmp_path):
    model, batches = zoo.build("llama")
    result = modicum.fit(model, plan=Plan("transformers", {}), data=batches, out=tmp_path / "out")
    assert "dequantize=True" not in result.receipt["verification"]
