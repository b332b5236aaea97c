"""Memory and time in llama.cpp: the figures of memory are those that its loader (0.3.36 of the Python binding) tells of the same files."""

import pytest
import torch

import modicum
from modicum.core.errors import BudgetError, ModelError, SettingError
from modicum.core.ggml import TYPES
from modicum.export.gguf import running, timing
from modicum.forms import Dense, Ggml
from modicum.measure.settings import Settings
from modicum.measure.subject import Subject
from modicum.runtime.clock import Clock
from modicum.runtime.llama_cpp import LlamaCpp
from modicum.testing import spelling

MB = 2**20
# Class, config, tokens, sequences; keys and values or states, and what is computed in, as told.
TOLD = [
    ("LlamaForCausalLM", {}, 512, 1, 0.19, 1.64),
    ("LlamaForCausalLM", {}, 4096, 1, 1.50, 5.14),
    ("LlamaForCausalLM", {"hidden_size": 256, "intermediate_size": 2048}, 512, 1, 0.19, 14.14),
    ("GPT2LMHeadModel", {}, 512, 1, 0.38, 1.26),
    ("FalconForCausalLM", {}, 4096, 1, 0.75, 5.01),
    ("MambaForCausalLM", {}, 512, 1, 0.03, 1.64),
]


COMMON = {"samples": 2, "tokens": 32, "test_samples": 1}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("to be or not to be, that is the question; " * 40)
    return str(path)


@pytest.mark.parametrize("name, config, context, batch, kept, computed", TOLD)
def test_buffers_are_no_smaller_than_told(name, config, context, batch, kept, computed, text, tmp_path):
    spelling.checkpoint(name, tmp_path / "model", **config)
    runtime = Subject.open(str(tmp_path / "model"), Settings(data=text, **COMMON)).runtime("gguf", batch, context, {})
    assert (runtime.cache() + runtime.states()) / MB == pytest.approx(kept, abs=0.006)
    assert computed - 0.01 <= runtime.activations() / MB <= 1.6 * computed


def test_weights_take_what_they_take_in_the_file(text, tmp_path):
    """Whole as they are they do not fit, and nothing of the kind could in PyTorch."""
    spelling.checkpoint("LlamaForCausalLM", tmp_path / "model")
    subject = Subject.open(str(tmp_path / "model"), Settings(data=text, **COMMON))
    beside, whole = subject.runtime("gguf", 1, 512, {}).overhead(), subject.model.dense_bytes
    run = lambda share: modicum.fit(
        str(tmp_path / "model"), memory=beside + int(share * whole), context=512, target="gguf", harm="error", search_time=0, data=text,
        menu="ggml type=q4_0 rounding=nearest,ggml type=q8_0 rounding=nearest", out=tmp_path / "out", overwrite=True, **COMMON,
    )  # fmt: skip
    spent = run(0.4).receipt
    assert spent["bytes"]["actual"] < spent["bytes"]["original"]
    with pytest.raises(BudgetError, match=r"cannot be reached, the smallest for .* MB of it cache and activations\. Allow more"):
        run(0.01)


def test_time_is_refused_where_llama_cpp_is_not(monkeypatch):
    monkeypatch.setattr(running, "installed", lambda: False)
    with pytest.raises(SettingError, match=r"is timed in llama\.cpp, which is not there\. Run: pip install llama-cpp-python"):
        modicum.fit("demo", speed="1.5x", target="gguf", **COMMON)


@pytest.fixture
def clocked(monkeypatch):
    """Products that take a second for each byte of their weight and each 512 tokens begun, and files that take three for each of theirs."""
    asked = []

    def nowhere(*_):
        raise RuntimeError("it is not there")

    def product(number, rows, columns, tokens, threads):
        asked.append((number, rows, columns, tokens))
        each = next(
            (type.row_bytes(columns) for type in TYPES.values() if type.number == number), {0: 4, 1: 2, 30: 2}.get(number, 0) * columns
        )
        return float(rows * each)

    monkeypatch.setattr(running, "installed", lambda: True)
    monkeypatch.setattr(running, "logits", nowhere)
    monkeypatch.setattr(timing, "product", product)
    monkeypatch.setattr(timing, "passed", lambda path, *_: 3.0 * path.stat().st_size)
    return asked


def test_seconds_are_those_of_types_and_shapes(clocked, text, tmp_path):
    spelling.checkpoint("LlamaForCausalLM", tmp_path / "model", dtype=torch.bfloat16)
    subject = Subject.open(str(tmp_path / "model"), Settings(data=text, **COMMON))
    runtime, units = LlamaCpp(subject.model, subject.script, batch=2, context=300, clock=Clock()), subject.model.units
    up = units["model.layers.0.mlp.up_proj.weight"]
    assert runtime.seconds(up, Dense(torch.empty(up.shape, dtype=up.dtype))) == 2 * 2 * up.size  # 512 tokens, then 88
    assert {tokens for _, rows, columns, tokens in clocked if (rows, columns) == up.shape} == {512, 88}
    coded = Ggml(torch.empty(up.shape[0], TYPES["q4_0"].row_bytes(up.shape[1]), dtype=torch.uint8), "q4_0", up.shape, up.dtype)
    assert runtime.seconds(up, coded) == 2 * coded.nbytes
    table, head = units["model.embed_tokens.weight"], units["lm_head.weight"]
    dense = lambda unit: Dense(torch.empty(unit.shape, dtype=unit.dtype))
    assert runtime.seconds(table, dense(table)) == 0 and runtime.seconds(head, dense(head)) == 2 * head.size
    assert (30, *head.shape, 2) in clocked  # what follows each of two texts is asked for alone
    assert 0 < runtime.block_rest("model.layers.0") * (1 + len(subject.model.blocks)) == runtime.rest() < runtime.original()


def test_an_expert_has_its_share_of_the_tokens(clocked, text, tmp_path):
    mixture = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
    spelling.checkpoint("Qwen3MoeForCausalLM", tmp_path / "model", **mixture)
    subject = Subject.open(str(tmp_path / "model"), Settings(data=text, **COMMON))
    expert = next(unit for unit in subject.model.units.values() if unit.kind == "expert")
    form = Dense(torch.empty(expert.shape, dtype=expert.dtype))
    many, one = (LlamaCpp(subject.model, subject.script, batch=1, context=context, clock=Clock()) for context in (256, 1))
    assert many.seconds(expert, form) == 4 * expert.size and clocked[-1][3] == 64
    assert one.seconds(expert, form) == pytest.approx(4 * expert.size / 4)  # one token goes to two of eight


def test_a_budget_of_time_is_kept_and_told(clocked, text, tmp_path):
    spelling.checkpoint("LlamaForCausalLM", tmp_path / "model", dtype=torch.bfloat16)
    made = modicum.fit(
        str(tmp_path / "model"), speed=1.15, context=64, target="gguf", harm="error", search_time=0, data=text,
        menu="ggml type=q4_0 rounding=nearest,ggml type=q8_0 rounding=nearest", out=tmp_path / "out", **COMMON,
    )  # fmt: skip
    told = made.receipt["verification"]["seconds"]
    assert told["forecast"] <= told["allowed"] == pytest.approx(told["original"] / 1.15)
    assert told["actual"] == 3.0 * (tmp_path / "out" / "model.gguf").stat().st_size
    assert 0 < made.receipt["bytes"]["actual"] < made.receipt["bytes"]["original"]


def test_what_fails_there_is_told(monkeypatch, clocked, text, tmp_path):
    def fails(*_):
        raise RuntimeError("it ended with -11")

    monkeypatch.setattr(timing, "passed", fails)
    with pytest.raises(ModelError, match=r"llama\.cpp must run here to be timed, does not \(it ended with -11\)\. Pass --size or --memory"):
        modicum.fit("demo", latency="1ms", target="gguf", **COMMON)
