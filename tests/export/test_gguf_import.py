"""Files for llama.cpp made checkpoints again: the numbers their blocks stand for, their tokenizer, and a word about it in what follows."""

import struct
from types import SimpleNamespace

import pytest
import torch
import transformers
from click.testing import CliRunner

from modicum.cli.main import main
from modicum.core.errors import ModelError
from modicum.core.option import Option
from modicum.core.unit import Stats
from modicum.export.gguf.architectures import ARCHITECTURES
from modicum.export.gguf.importing import import_gguf
from modicum.export.gguf.naming import Naming
from modicum.export.gguf.opened import open_gguf
from modicum.export.gguf.reader import GgufFile
from modicum.measure.settings import Settings
from modicum.measure.subject import Subject
from modicum.models.open import open_model
from modicum.receipt import evaluate, read_receipt
from modicum.testing import spelling

TURNED = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
MODELS = {
    "LlamaForCausalLM": {"rope_parameters": TURNED, "max_position_embeddings": 16384},
    "Qwen3MoeForCausalLM": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True},
    "Qwen2ForCausalLM": {"tie_word_embeddings": True, "vocab_size": 320},
    "Qwen3ForCausalLM": {"head_dim": 32},
    "Gemma2ForCausalLM": {"query_pre_attn_scalar": 16, "sliding_window": 8},
    "Gemma3ForCausalLM": {"query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 7},
    "Phi3ForCausalLM": {},
    "Olmo2ForCausalLM": {},
    "StableLmForCausalLM": {"use_qkv_bias": True},
    "FalconForCausalLM": {},
    "GPT2LMHeadModel": {},
    "MambaForCausalLM": {},
}


def opened(folder, model, **settings):
    spelling.checkpoint(model, folder / "model", **MODELS.get(model, {}) | settings)
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog; " * 20)
    asked = Settings(samples=2, tokens=16, test_samples=1, data=str(folder / "text.txt"))
    return Subject.open(str(folder / "model"), asked).target("gguf")


def written(folder, target, type=""):
    """A file in a folder, and the module whose weights it has."""
    forms = {}
    for site in target.sites() if type else ():
        step = target.adapt(site, Option.parse(f"ggml type={type} rounding=nearest")).steps[0]
        forms |= {unit.name: step.code(target.model.matrix(unit).float(), Stats(), unit.dtype) for unit in site.units}
    target.layout(forms, {}, frozenset()).write(folder)
    target.finish(folder, forms, frozenset())
    return target.verify(folder, forms)[0]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return opened(tmp_path_factory.mktemp("llama"), "LlamaForCausalLM")


@pytest.mark.parametrize("name", [name if name == "LlamaForCausalLM" else pytest.param(name, marks=pytest.mark.slow) for name in MODELS])
def test_what_comes_back_computes_what_was_written(name, tmp_path, llama):
    target = llama if name == "LlamaForCausalLM" else opened(tmp_path, name)
    module = written(tmp_path, target, "q8_0")
    made = import_gguf(tmp_path / "model.gguf", tmp_path / "back", allow_quantized_source=True)
    assert {"q8_0", "f32"} <= set(made.types)
    back = transformers.AutoModelForCausalLM.from_pretrained(made.out)
    ids = torch.randint(3, 250, (1, 40))
    with torch.no_grad():
        torch.testing.assert_close(back(ids).logits, module(ids).logits, rtol=1e-4, atol=1e-4)
    before, after = (transformers.AutoTokenizer.from_pretrained(path) for path in (target.model.directory, made.out))
    for text in ("it's 12 o'clock,\n\n  is it?", "x = {'a': [1, 2]}"):
        assert before(text)["input_ids"] == after(text)["input_ids"]


def test_what_was_rounded_needs_a_word_and_is_told_ever_after(tmp_path, llama):
    written(tmp_path, llama, "q8_0")
    words = ["import", str(tmp_path / "model.gguf"), "--out", str(tmp_path / "back")]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 2 and "rounded already (q8_0)" in refused.output and not (tmp_path / "back").exists()
    assert CliRunner().invoke(main, [*words, "--allow-quantized-source"]).exit_code == 0
    (note,) = open_model(tmp_path / "back").notes
    assert "rounded before" in note and "model.gguf holds them as q8_0" in note
    again = CliRunner().invoke(main, [*words, "--allow-quantized-source"])
    assert again.exit_code == 2 and "exists already" in again.output


def test_a_file_is_fitted_itself_and_its_receipt_says_what_it_was(tmp_path, llama):
    module = written(tmp_path, llama, "q8_0")
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog; " * 20)
    words = [
        "fit",
        str(tmp_path / "model.gguf"),
        "--method",
        "nearest bits=8",
        "--data",
        str(tmp_path / "text.txt"),
        "--out",
        str(tmp_path / "out"),
    ]
    words += ["--samples", "2", "--tokens", "16", "--test-samples", "1", "--quiet"]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 2 and "rounded already (q8_0)" in refused.output and "--allow-quantized-source" in refused.output
    done = CliRunner().invoke(main, [*words, "--allow-quantized-source"])
    assert done.exit_code == 0, done.output
    receipt = read_receipt(tmp_path / "out" / "receipt.json")
    assert any("rounded before: 23 came as q8_0 (GGUF), model.embed_tokens.weight" in event for event in receipt["events"]), receipt[
        "events"
    ]
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.randint(3, 250, (1, 40))
    with torch.no_grad():
        assert (back(ids).logits - module(ids).logits).norm() < 0.02 * module(ids).logits.norm()
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("it is 12")["input_ids"]


@pytest.mark.parametrize("name", [name if name == "LlamaForCausalLM" else pytest.param(name, marks=pytest.mark.slow) for name in MODELS])
def test_what_is_read_one_at_a_time_is_what_the_file_holds(name, tmp_path, llama):
    module = written(tmp_path, llama if name == "LlamaForCausalLM" else opened(tmp_path, name), "q8_0")
    model = open_gguf(tmp_path / "model.gguf", allow_quantized_source=True)
    held = dict(module.named_parameters())
    assert all(torch.equal(model.weights.read(name), held[name]) for name in model.weights.names)
    assert model.hash() and model.tokenizer("a b")["input_ids"]


def test_a_file_is_judged_as_it_is(tmp_path, llama):
    written(tmp_path, llama, "q8_0")
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog; " * 20)
    found = evaluate(tmp_path / "model.gguf", reference=llama.model.directory, data=str(tmp_path / "text.txt"), samples=1, tokens=16)
    assert 0 < found["quality"]["mean"] < 0.01


def test_weights_as_they_were_need_no_word(tmp_path, llama):
    written(tmp_path, llama)
    assert import_gguf(tmp_path / "model.gguf", tmp_path / "back").types == ("f32",)
    assert open_model(tmp_path / "back").notes == []


def test_a_file_that_says_too_much_or_too_little_is_refused(tmp_path, llama):
    written(tmp_path, llama)
    path = tmp_path / "model.gguf"
    raw = path.read_bytes()
    for old, new, said in (
        (b"blk.0.attn_q.weight", b"blk.0.attn_x.weight", "must hold blk.0.attn_q.weight, does not"),
        (b"llama.block_count", b"llama.block_xount", "must describe a model of llama"),
        (struct.pack("<IQQ", 3, *struct.unpack("<QQ", raw[8:24])), struct.pack("<IQQ", 3, 2**60, 5), "more than there can be"),
        (raw[-4000:], b"", "beyond its end"),
    ):
        path.write_bytes(raw.replace(old, new, 1))
        with pytest.raises(ModelError, match=said):
            import_gguf(path, tmp_path / "back")
    with pytest.raises(ModelError, match=r"cannot be read \(No such file or directory\)\. Check the path"):
        import_gguf(tmp_path / "none.gguf", tmp_path / "back")
    path.write_bytes(raw)
    assert set(GgufFile(path).tensors) >= {"token_embd.weight", "output.weight", "rope_freqs.weight"}


def test_rows_that_no_heads_give_are_refused():
    (row,) = (row for row in ARCHITECTURES if row.name == "llama")
    with pytest.raises(ModelError, match="the 30 rows of blk.0.attn_q.weight must be those of whole heads"):
        Naming(row, SimpleNamespace(head_dim=15), 1, "model.gguf").parts("model.layers.0.self_attn.q_proj.weight", (30, 64))
