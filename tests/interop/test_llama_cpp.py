"""llama.cpp runs what is written for it, and says what the dequantized weights say."""

import runpy
from pathlib import Path

import llama
import pytest
import torch
from torch.nn.functional import cross_entropy

import modicum
from modicum.core.ggml import TYPES
from modicum.core.option import Option
from modicum.core.plan import Plan
from modicum.core.unit import Stats
from modicum.data.splits import from_text
from modicum.export.gguf import timing
from modicum.export.gguf.adapter import to_gguf
from modicum.export.gguf.reader import GgufFile
from modicum.measure.settings import Settings
from modicum.measure.subject import Subject
from modicum.models.open import open_model
from modicum.testing import spelling
from modicum.train.trained import trained

# What of each architecture llama.cpp computes, where a tiny random model would be otherwise.
MODELS = {
    "LlamaForCausalLM": {},
    "LlamaForCausalLM turned slower": {
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "LlamaForCausalLM stretched": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "LlamaForCausalLM with biases": {"attention_bias": True, "mlp_bias": True},
    "MistralForCausalLM": {},
    "Qwen2ForCausalLM": {"tie_word_embeddings": True, "vocab_size": 320},
    "Qwen3ForCausalLM": {},
    "Qwen3MoeForCausalLM": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True},
    "Gemma2ForCausalLM": {"query_pre_attn_scalar": 16, "sliding_window": 8},
    "Gemma3ForCausalLM": {"query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 7},
    "Phi3ForCausalLM": {},
    "Olmo2ForCausalLM": {},
    "StableLmForCausalLM": {"use_qkv_bias": True},
    "StableLmForCausalLM in parallel": {"use_parallel_residual": True},
    "FalconForCausalLM": {},
    "FalconForCausalLM in groups": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "GPT2LMHeadModel": {},
    "MambaForCausalLM": {"time_step_rank": 32},
}  # fmt: skip


@pytest.fixture(scope="module")
def package():
    try:
        import llama_cpp
    except ImportError as error:
        pytest.skip(f"llama_cpp cannot be imported here ({error}): run make interop")
    heard = llama.listen(llama_cpp)
    yield llama_cpp
    del heard


@pytest.mark.parametrize("type", ["", "q8_0", "q4_0"])
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_is_computed_alike(package, name, type, tmp_path):
    spelling.checkpoint(name.split()[0], tmp_path / "model", **MODELS[name])
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question; " * 40)
    subject = Subject.open(str(tmp_path / "model"), Settings(samples=2, tokens=32, test_samples=1, data=str(tmp_path / "text.txt")))
    target, forms = subject.target("gguf"), {}
    for site in target.sites() if type else ():
        option = target.adapt(site, Option.parse(f"ggml type={type}"))
        forms |= {
            unit.name: option.steps[0].without_data().code(subject.model.matrix(unit).float(), Stats(), unit.dtype) for unit in site.units
        }
    layout = target.layout(forms, {}, frozenset())
    layout.write(tmp_path)
    target.finish(tmp_path, forms, frozenset())
    module, _ = target.verify(tmp_path, forms)
    ids = torch.randint(3, 250, (1, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = module(ids).logits[0]
    with llama.opened(package, tmp_path / "model.gguf", context=64) as (logits, _):
        theirs = logits(ids[0].tolist())
    # llama.cpp rounds inputs of quantized weights to eight bits, keys and values to float16, and knows some functions from tables. A token
    # on the border between two experts may then go to the other one.
    gaps, lost = (ours - theirs).abs().amax(-1) / ours.abs().max(), llama.divergence(ours, theirs)
    if type:
        assert float(gaps.median()) < 0.06 and float(lost.median()) < 2e-3
    else:
        assert float(gaps.max()) < 4e-3 and float(lost.mean()) < 1e-6


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Phi3ForCausalLM", "GPT2LMHeadModel", "FalconForCausalLM"])
def test_what_was_learnt_beside_a_model_is_computed_alike(package, name, tmp_path):
    spelling.checkpoint(name, tmp_path / "model", **MODELS[name])
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question; " * 40)
    subject = Subject.open(str(tmp_path / "model"), Settings(samples=2, tokens=32, test_samples=1, data=str(tmp_path / "text.txt")))
    target = subject.target("gguf")
    target.layout({}, {}, frozenset()).write(tmp_path)
    target.finish(tmp_path, {}, frozenset())
    module, _ = target.verify(tmp_path, {})
    ids, draw = torch.randint(3, 250, (1, 48), generator=torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    with trained(module, "lora rank=3") as t, torch.no_grad():
        for parameter in t.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
        ours, delta = module(ids).logits[0], t.delta()
        before = llama.divergence(ours, module(ids).logits[0] * 0)
    adapter = to_gguf(delta, tmp_path / "adapter", tmp_path / "model")
    with llama.opened(package, tmp_path / "model.gguf", context=64, adapter=adapter) as (logits, _):
        theirs = logits(ids[0].tolist())
    assert float(((ours - theirs).abs().amax(-1) / ours.abs().max()).max()) < 1e-2
    assert float(llama.divergence(ours, theirs).mean()) < 1e-5 * float(before.mean())


def test_blocks_of_different_widths_are_computed_alike(package, tmp_path):
    spelling.checkpoint("LlamaForCausalLM", tmp_path / "model", num_hidden_layers=4, num_key_value_heads=4)
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question; " * 40)
    data = {"data": str(tmp_path / "text.txt"), "samples": 4, "tokens": 32, "test_samples": 2}
    cuts = [("1.mlp:ffn", "0.5"), ("2.mlp:ffn", "0.25"), ("3.self_attn:heads", "0.5")]
    plan = Plan("gguf", {f"model.layers.{place}": f"ziplm keep={keep}" for place, keep in cuts})
    made = modicum.fit(tmp_path / "model", plan=plan, target="gguf", out=tmp_path / "out", **data)
    assert GgufFile(tmp_path / "out" / "model.gguf").values["general.architecture"] == "deci"
    ids = torch.randint(3, 250, (1, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = made.model(ids).logits[0]
    with llama.opened(package, tmp_path / "out" / "model.gguf", context=64) as (logits, _):
        assert float(llama.divergence(ours, logits(ids[0].tolist())).mean()) < 1e-6


@pytest.mark.parametrize("method", ["ziplm keep=0.5", "blocks count=1"])
def test_what_is_narrower_or_shallower_is_computed_alike(package, method, tmp_path):
    spelling.checkpoint("LlamaForCausalLM", tmp_path / "model", num_hidden_layers=4, num_key_value_heads=4)
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question; " * 40)
    made = modicum.fit(
        tmp_path / "model", method=method, target="gguf", data=str(tmp_path / "text.txt"), samples=4, tokens=32, test_samples=2,
        out=tmp_path / "out",
    )  # fmt: skip
    ids = torch.randint(3, 250, (1, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = made.model(ids).logits[0]
    with llama.opened(package, tmp_path / "out" / "model.gguf", context=64) as (logits, _):
        assert float(llama.divergence(ours, logits(ids[0].tolist())).mean()) < 1e-6


@pytest.mark.parametrize("type", ["q8_0", "iq3_s", "iq2_s"])
def test_a_receipt_has_what_each_reader_makes_of_the_file(package, type, tmp_path):
    made = modicum.fit(
        "demo", method=f"ggml type={type} rounding=nearest", target="gguf", samples=2, tokens=64, test_samples=1, out=tmp_path / "out",
        allow_broken=True,
    )  # fmt: skip
    told = made.receipt["verification"]
    assert told["llama.cpp"]["mean KL per token"] < 2e-3 and told["llama.cpp"]["tokens"] == 64
    assert told["transformers"] == "equal" or "accelerate" in told["transformers"]


def test_what_was_written_is_timed(package, tmp_path):
    made = modicum.fit(
        "demo", latency="1s", context=16, method=None, target="gguf", samples=2, tokens=64, test_samples=1, search_time=0, harm="error",
        menu="ggml type=q8_0 rounding=nearest", out=tmp_path / "out",
    )  # fmt: skip
    told = made.receipt["verification"]["seconds"]
    assert 0 < told["actual"] < 1 and 0 < told["forecast"] < 1 and 0 < told["original"] < 1 == told["allowed"]
    assert 0 < timing.product(TYPES["q4_0"].number, 64, 64, 1, 1) < timing.product(TYPES["q4_0"].number, 2048, 2048, 64, 1) < 10


def test_a_process_beside_keeps_to_the_memory(package, tmp_path):
    spelling.checkpoint("LlamaForCausalLM", tmp_path / "model")
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question; " * 40)
    subject = Subject.open(str(tmp_path / "model"), Settings(samples=2, tokens=32, test_samples=1, data=str(tmp_path / "text.txt")))
    target = subject.target("gguf")
    target.layout({}, {}, frozenset()).write(tmp_path)
    target.finish(tmp_path, {}, frozenset())
    target.room = 1000
    told = target.verify(tmp_path, {}, subject.data.test[0])[1]
    assert told["llama.cpp"].startswith("not tried, it needs") and "llama.cpp was not asked" in told["events"][-1]


@pytest.mark.parametrize(
    "name", ["LlamaForCausalLM", "Qwen2ForCausalLM", "Phi3ForCausalLM", "StableLmForCausalLM", "FalconForCausalLM", "MambaForCausalLM"]
)
def test_transformers_own_reader_makes_the_same_model(name, tmp_path):
    pytest.importorskip("accelerate", reason="Transformers' reader of GGUF files needs accelerate: run make interop")
    spelling.checkpoint(name, tmp_path / "model", **MODELS[name])
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question; " * 40)
    subject = Subject.open(str(tmp_path / "model"), Settings(samples=2, tokens=32, test_samples=1, data=str(tmp_path / "text.txt")))
    target = subject.target("gguf")
    target.layout({}, {}, frozenset()).write(tmp_path)
    target.finish(tmp_path, {}, frozenset())
    assert target.verify(tmp_path, {}, subject.data.test[0])[1]["transformers"] == "equal"


def test_the_script_of_the_gallery_runs_both_files(package, capsys):
    runpy.run_path(str(Path(__file__).parents[2] / "docs" / "gallery" / "05_transformers_and_llama_cpp.py"), run_name="__main__")
    *_, ours, theirs = capsys.readouterr().out.splitlines()
    assert ours.startswith("Transformers writes 'Return") and theirs.startswith("llama.cpp writes    'Return")


def test_pieces_are_merged_alike(package, tmp_path):
    text = "to be or not to be, that is the question: whether 'tis nobler in the mind to suffer; " * 4
    spelling.checkpoint("LlamaForCausalLM", tmp_path / "model", vocab_size=448)
    tokenizer = spelling.pieces([text])
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(" ".join(chr(97 + place * place % 26) for place in range(400)))
    subject = Subject.open(str(tmp_path / "model"), Settings(samples=2, tokens=32, test_samples=1, data=str(tmp_path / "text.txt")))
    subject.target("gguf").layout({}, {}, frozenset()).write(tmp_path)
    with llama.opened(package, tmp_path / "model.gguf", context=64) as (_, vocabulary):
        for each in ("to be or not", " the question  whether", "nobler; minds 12 — naïve", "x"):
            assert llama.tokens(package, vocabulary, each) == tokenizer(each, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module", params=["ggml type=q4_k", "ggml type=q8_0"])
def demo(request, package, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    modicum.fit("demo", method=request.param, target="gguf", samples=4, test_samples=2, out=out)
    module = modicum.load(out).float()
    model = open_model("demo")
    text = from_text(None, model.tokenizer, samples=1, tokens=512, seed=0, batch=1, test_samples=16)
    with llama.opened(package, out / "model.gguf") as (logits, vocabulary):
        yield module, torch.cat([batch["input_ids"] for batch in text.test]), logits, vocabulary, model.tokenizer


def test_the_demo_answers_as_its_dequantized_weights(demo):
    module, rows, logits, *_ = demo
    with torch.no_grad():
        ours = module(rows).logits
    theirs = torch.stack([logits(row.tolist()) for row in rows])
    assert float(llama.divergence(ours, theirs).mean()) <= 2e-3
    assert float((ours.argmax(-1) == theirs.argmax(-1)).double().mean()) >= 0.98
    lost = [cross_entropy(each[:, :-1].flatten(0, 1).double(), rows[:, 1:].flatten()).exp() for each in (ours, theirs)]
    assert abs(float(lost[1] / lost[0]) - 1) <= 0.005


def test_the_demo_writes_as_its_dequantized_weights(demo):
    """Two hundred tokens: the first that differs is one that both best logits are near for."""
    module, rows, logits, *_ = demo
    for row in rows[:3, :64].tolist():
        start, made = len(row), list(row)
        best = int(logits(made)[-1].argmax())
        for _ in range(200):
            made.append(best)
            best = int(logits([best], first=len(made) - 1)[-1].argmax())
        with torch.no_grad():
            ours = module(torch.tensor([made])).logits[0, start - 1 : -1]
        differs = (ours.argmax(-1) != torch.tensor(made[start:])).nonzero()
        if len(differs):
            first, second = ours[int(differs[0])].topk(2).values
            assert float(first - second) < 0.05


def test_the_demo_reads_text_as_its_tokenizer_does(demo, package):
    *_, vocabulary, tokenizer = demo
    for text in (
        "def f(x):\n    return x  # what's this, 12345?\n\n\n",
        "naïve — façade\t\t…",
        "  lambda *args, **kw: {'a': [1.5e-3]}",
        "日本語",
    ):
        assert llama.tokens(package, vocabulary, text) == tokenizer(text, add_special_tokens=False)["input_ids"]
