"""Architectures: swept, fitted to half their bytes, reloaded equal, and nearly all layer bytes treated, of every one."""

import pytest
import torch

import modicum
from modicum.data.splits import call
from modicum.sweep.outputs import output_tensor
from modicum.testing import zoo

# What is no layer's weight: biases and norms, parameters that are added, and what a parametrization makes weights of.
BESIDE = {"vector", "table", "small", "parametrized"}
REASONS = {"kept by plan", "kept by request", "no option fits"} | BESIDE
ALL = [*zoo.names(), *zoo.extra_names()]
# Of one kind each: dense, experts, encoder, no blocks at all.
SEARCHED = {"llama", "qwen3_moe", "bert", "mlp"}
# One of each awkward kind goes through everything in the short form; all do in the long one.
KINDS = {"llama", "qwen3_moe", "gpt2", "mamba", "whisper", "cnn", "bert", "mlp"}
METHOD = "gptq bits=4 group=32 sweeps=0"
# Of all families one option, or two; what the default menu offers one of these kinds takes.
MENU = (
    "nearest bits=2 group=32,nearest bits=4 group=32,gptq bits=3 group=32 sweeps=0 | eora rank=2,float8,svd keep=0.5,"
    "sparsegpt keep=0.5,ziplm keep=0.5,experts keep=0,replaceme count=1"
)
# What is coded takes the same road for all, and long.
MENUS = {name: MENU for name in KINDS} | {"llama": f"{MENU},watersic rate=3", "gpt2": None}


def each(names):
    return [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", each(ALL))
def test_half_the_bytes_reloaded_equal(name):
    model, batches = zoo.build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    # Judging candidates takes the same road for all: a few models are enough.
    search, menu = 0.5 if name in SEARCHED else 0, MENUS.get(name)
    result = modicum.fit(
        model, f"{size // 2}B", data=batches, target="modicum", menu=menu, group=32, gradient_samples=2, search_time=search
    )
    receipt = result.receipt
    assert receipt["bytes"]["actual"] <= size // 2
    assert receipt["verification"]["largest weight difference"] == 0
    assert receipt["verification"]["logits"]["largest"] < 1e-6
    assert {row["reason"] for row in receipt["coverage"]["untreated"]} <= REASONS
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", each(ALL))
def test_at_least_99_percent_of_layer_bytes_can_be_treated(name):
    model, batches = zoo.build(name)
    receipt = modicum.fit(model, method=METHOD, data=batches, target="modicum", allow_fallback=True).receipt
    told = receipt["coverage"]
    beside = sum(row["bytes"] for row in told["untreated"] if row["reason"] in BESIDE - {"vector"})
    assert told["treated_bytes"] >= 0.99 * (told["layer_bytes"] - beside), told["untreated"]
    assert receipt["bytes"]["actual"] < receipt["bytes"]["original"] / 2
    assert receipt["verification"]["largest weight difference"] == 0


@pytest.mark.parametrize("name", each(name for name in zoo.names() if name not in ("mlp", "cnn")))
def test_from_disk_as_from_memory(name, tmp_path):
    model, batches = zoo.build(name)
    model.save_pretrained(tmp_path / "model")
    settings = {"method": METHOD, "data": batches, "target": "modicum", "allow_fallback": True}
    lazy, held = modicum.fit(tmp_path / "model", **settings), modicum.fit(model, **settings)
    with torch.no_grad():
        for batch in batches:
            one, two = output_tensor(call(lazy.model, batch))[0], output_tensor(call(held.model, batch))[0]
            assert torch.equal(one, two)
