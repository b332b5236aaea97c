"""Keys and values in eight bits where a budget of memory asks for it."""

import json

import pytest

import modicum
from modicum.core.budget import Budget
from modicum.core.errors import SettingError
from modicum.fit.request import Request
from modicum.measure.subject import Subject
from modicum.testing import spelling

COMMON = {
    "samples": 2,
    "tokens": 32,
    "test_samples": 1,
    "search_time": 0,
    "harm": "error",
    "menu": "nearest bits=4 group=32,nearest bits=8 group=32",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint, a text, and what its weights take beside the cache of 4,000 positions."""
    folder = tmp_path_factory.mktemp("kept")
    spelling.checkpoint("LlamaForCausalLM", folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text()) | {"use_cache": True, "max_position_embeddings": 4096}
    (folder / "model" / "config.json").write_text(json.dumps(config))
    (folder / "text.txt").write_text("to be or not to be, that is the question; " * 40)
    return folder


def fitted(model, out, memory, **words):
    return modicum.fit(
        str(model / "model"), memory=memory, context=4000, target="vllm", kv="auto", data=str(model / "text.txt"), out=out, **COMMON, **words
    ).receipt  # fmt: skip


def test_the_cache_is_rounded_where_its_bytes_buy_weights(model, tmp_path):
    told = {}
    for name, memory in {"stay as they are": "1GB", "are rounded": least(model)}.items():
        receipt = fitted(model, tmp_path / name, memory)
        assert [event.partition(";")[0] for event in receipt["events"] if event.startswith("kv: keys")] == [f"kv: keys and values {name}"]
        told[name] = json.loads((tmp_path / name / "config.json").read_text()).get("quantization_config", {}).get("kv_cache_scheme")
    assert told["stay as they are"] is None and told["are rounded"]["num_bits"] == 8


def least(model):
    """A little less than what everything takes with nothing rounded but the weights to four bits."""
    request = Request(
        budget=Budget(memory=10**9), context=4000, target="vllm", data=str(model / "text.txt"), samples=2, tokens=32, test_samples=1
    )
    subject = Subject.open(str(model / "model"), request)
    runtime = subject.runtime("vllm", 1, 4000, {})
    assert runtime.cache() > subject.model.dense_bytes // 2
    return runtime.overhead() + subject.model.dense_bytes // 4


def test_without_a_budget_of_memory_there_is_nothing_to_settle(model, tmp_path):
    with pytest.raises(
        SettingError, match="kv auto: must stand beside --target vllm, whose cache it makes smaller, stands beside transformers"
    ):
        words = {"memory": "1MB", "target": "transformers", "kv": "auto", "data": str(model / "text.txt"), "out": tmp_path / "out"}
        modicum.fit(str(model / "model"), **words, **COMMON)
    with pytest.raises(SettingError, match="kv auto: must stand beside --memory, which alone says what a smaller cache is worth"):
        modicum.fit(str(model / "model"), bpw=8, target="vllm", kv="auto", data=str(model / "text.txt"), out=tmp_path / "out", **COMMON)
