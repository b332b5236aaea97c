"""One scheme for all that is quantized: every loader reads it, it fits, and the receipt says what it costs."""

import json

import pytest
import torch
import transformers
from packaging.version import Version

import modicum
from modicum.core.errors import SettingError
from modicum.testing import zoo

MENU = "nearest bits=4 group=32,nearest bits=4 group=64,nearest bits=8 group=32,float8"


def fitted(name, tmp_path, **settings):
    model, batches = zoo.build(name, dtype=torch.bfloat16)
    settings = {"menu": MENU, "search_time": 0, "target": "transformers", "bpw": 8.5, "uniform": True} | settings
    return modicum.fit(model, data=batches, out=tmp_path / "out", overwrite=True, **settings)


@pytest.mark.parametrize("name, settings", [("llama", {}), ("llama", {"target": "vllm"}), ("qwen3_moe", {}), ("qwen3_moe", {"bpw": 7})])
def test_every_way_to_load_gives_the_same(name, settings, tmp_path):
    result = fitted(name, tmp_path, **settings)
    assert result.receipt["verification"]["dequantize=True"]["result"] == "the same"
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    schemes = {json.dumps([group["weights"], group["format"]]) for group in config["config_groups"].values()}
    assert len(schemes) == 1
    bits = settings.get("bpw", 8.5)
    assert result.receipt["bytes"]["bits_per_weight"] <= bits


def test_the_cost_is_that_of_the_free_plan(tmp_path):
    one = fitted("llama", tmp_path).receipt
    free = fitted("llama", tmp_path, uniform=False).receipt
    told = one["search"]["uniform"]
    assert told["forecast"] == pytest.approx(one["predicted_harm"])
    assert told["bytes"] == one["bytes"]["actual"]
    assert told["free"]["forecast"] == pytest.approx(free["predicted_harm"])
    assert told["free"]["forecast"] < told["forecast"]
    assert told["scheme"] in next(event for event in one["events"] if event.startswith("uniform: all that is quantized has one scheme"))
    if Version(transformers.__version__) >= Version("5.21"):  # before, mixtures were decoded right
        assert free["verification"]["dequantize=True"]["result"] != "the same"


def test_nothing_is_given_up_where_every_loader_reads_mixtures(tmp_path):
    receipt = fitted("llama", tmp_path, target="modicum").receipt
    assert any(event.startswith("uniform: nothing was given up") for event in receipt["events"])
    assert receipt["search"]["uniform"]["free"]["forecast"] == pytest.approx(receipt["predicted_harm"])


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"bpw": None, "method": "nearest bits=4 group=32"}, "uniform: must stand beside a budget"),
        ({"activations": "int8"}, "uniform: must not stand beside activations"),
        ({"bpw": 9, "set": ["*o_proj: bits=8", "*down_proj: bits=4"]}, "uniform: one scheme of the menu must fit all"),
    ],
)
def test_what_leaves_no_scheme_is_refused(settings, sentence, tmp_path):
    with pytest.raises(SettingError, match=sentence):
        fitted("llama", tmp_path, **settings)
