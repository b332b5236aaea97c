"""Prices in vLLM: weights stay packed, and time is not told."""

import pytest

import modicum
from modicum.core.budget import Budget
from modicum.core.errors import SettingError
from modicum.fit.request import Request
from modicum.measure.settings import Settings
from modicum.measure.subject import Subject
from modicum.testing import spelling

COMMON = {"samples": 2, "tokens": 32, "test_samples": 1}


def test_weights_take_what_they_take_in_the_file(tmp_path):
    """Whole as they are they do not fit, and nothing of the kind could in PyTorch."""
    model, text = tmp_path / "model", tmp_path / "text.txt"
    spelling.checkpoint("LlamaForCausalLM", model)
    text.write_text("to be or not to be, that is the question; " * 40)
    subject = Subject.open(str(model), Settings(data=str(text), **COMMON))
    memory = subject.runtime("vllm", 1, 64, {}).overhead() + int(0.6 * subject.model.dense_bytes)
    spent = modicum.fit(
        str(model), memory=memory, context=64, target="vllm", harm="error", search_time=0, data=str(text), out=tmp_path / "out",
        menu="nearest bits=4 group=32,nearest bits=8 group=32", **COMMON,
    )  # fmt: skip
    assert spent.receipt["bytes"]["actual"] < 0.65 * spent.receipt["bytes"]["original"]


def test_keys_and_values_in_eight_bits_take_half():
    found = {}
    for kv in (None, "fp8"):
        request = Request(budget=Budget(memory=10**8), kv=kv, target="vllm", **COMMON)
        runtime = Subject.open("demo", request).runtime("vllm", 2, 64, {})
        found[kv] = runtime.overhead()
    cache, width = runtime.cache(), runtime.model.dtype.itemsize
    assert cache and found[None] - found["fp8"] == cache - cache // width


def test_time_is_refused():
    with pytest.raises(SettingError, match="is timed in PyTorch, where target vllm does not run"):
        modicum.fit("demo", speed="1.5x", target="vllm", **COMMON)
