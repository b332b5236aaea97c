"""Files for llama.cpp: every byte is told before it is written, and the format's own reader gives back what was made."""

import json
import struct
from types import SimpleNamespace

import gguf
import pytest
import torch

import modicum
from modicum.core.errors import ModelError
from modicum.core.method import Change
from modicum.core.option import Option
from modicum.core.unit import Stats
from modicum.export.gguf.target import Gguf
from modicum.export.gguf.vocabulary import vocabulary
from modicum.export.narrow import Incision
from modicum.export.source import open_source
from modicum.forms import Cut, Dense
from modicum.measure.settings import Settings
from modicum.measure.subject import Subject
from modicum.quantize.ggml import Ggml
from modicum.table.menu import weight_options
from modicum.table.sizing import Sizing
from modicum.testing import spelling, zoo

TEXT = "the quick brown fox jumps over the lazy dog; " * 40
# What the zoo makes of an architecture, as far as llama.cpp computes it.
AS_THERE = {
    "Qwen2ForCausalLM": {"tie_word_embeddings": True, "vocab_size": 320},  # its own class of tokenizer adds a token
    "Qwen3MoeForCausalLM": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True},
    "Gemma2ForCausalLM": {"query_pre_attn_scalar": 16, "sliding_window": 8},
    "Gemma3ForCausalLM": {"query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 7},
}
PLAIN = ["Qwen3MoeForCausalLM", "GPT2LMHeadModel"]
OTHERS = [
    *(
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "Phi3ForCausalLM",
    ),
    *("Olmo2ForCausalLM", "StableLmForCausalLM", "FalconForCausalLM", "MambaForCausalLM"),
]


def opened(directory, model="LlamaForCausalLM", **settings):
    spelling.checkpoint(model, directory / "model", dtype=torch.bfloat16, **AS_THERE.get(model, {}) | settings)
    (directory / "text.txt").write_text(TEXT)
    asked = Settings(samples=2, tokens=32, test_samples=1, data=str(directory / "text.txt"))
    return Subject.open(str(directory / "model"), asked)


def made(target, pick):
    """Forms of all sites whose option ``pick`` gives, and the option of each."""
    forms, options = {}, {}
    for place, site in enumerate(target.sites()):
        option = target.adapt(site, Option.parse(pick(place)) if pick(place) else Option())
        options[site.name] = str(option)
        for unit in site.units if option.steps else ():
            forms[unit.name] = option.steps[0].without_data().code(target.model.matrix(unit).float(), Stats(), unit.dtype)
    return forms, options


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return opened(tmp_path_factory.mktemp("llama"), hidden_size=256, intermediate_size=512, num_attention_heads=8, head_dim=32)


@pytest.mark.parametrize("name", [*PLAIN, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_what_is_written_is_read_back_whole(name, tmp_path):
    """Orders of rows, splits, stacks and shifts are taken back exactly: each weight is the one that was made."""
    subject = opened(tmp_path, name)
    target = subject.target("gguf")
    forms, options = made(target, lambda place: ("ggml type=q4_k", "", "ggml type=q8_0")[place % 3])
    assert {"ggml type=q8_0", "keep"} <= set(options.values())
    layout = target.layout(forms, {}, frozenset())
    (path,) = layout.write(tmp_path)
    assert path.stat().st_size == layout.nbytes() == Sizing(target, ()).target.layout(forms, {}, frozenset()).nbytes()
    target.finish(tmp_path, forms, frozenset())
    module, found = target.verify(tmp_path, forms)
    assert found["tensors compared"] == len(layout.tensors)
    model = subject.model
    for parameter in model.weights.names:
        mine = [unit for unit in model.units.values() if unit.parameter == parameter]
        held = module.get_parameter(parameter)
        for unit in mine:
            expected = forms[unit.name].dense() if unit.name in forms else model.matrix(unit)
            tolerance = 1e-6 if parameter.endswith("A_log") else 0
            torch.testing.assert_close(unit.matrix(held), expected.to(held.dtype), rtol=tolerance, atol=tolerance)
        if not mine:
            torch.testing.assert_close(held, model.weights.read(parameter), rtol=0, atol=1e-6)


def test_the_table_knows_the_size_to_the_byte(llama, tmp_path):
    target = llama.target("gguf")
    sizing = Sizing(target, weight_options(llama.menu("gguf")))
    table = sizing.table()
    for turn in (0, 3, 5):
        picks = {name: (place * 7 + turn) % len(choices) for place, (name, choices) in enumerate(table.choices.items())}
        options = {name: Option.parse(table.choices[name][index].option) for name, index in picks.items()}
        forms = {
            unit.name: sizing.form(options[site.name], unit) for site in target.sites() for unit in site.units if options[site.name].steps
        }
        assert table.cost(picks) == target.layout(forms, {}, frozenset()).nbytes()


def test_the_formats_own_reader_finds_types_tokenizer_and_settings(llama, tmp_path):
    target = llama.target("gguf")
    forms, options = made(target, lambda place: f"ggml type={('q4_k', 'q6_k', 'q5_0')[place % 3]}")
    target.layout(forms, {}, frozenset()).write(tmp_path)
    read = gguf.GGUFReader(tmp_path / "model.gguf")
    assert {tensor.tensor_type.name for tensor in read.tensors} == {"Q4_K", "Q6_K", "Q5_0", "F32"}
    assert [tensor.tensor_type.name for tensor in read.tensors if len(tensor.shape) == 1] == ["F32"] * 7
    value = lambda key: read.fields[key].contents()
    assert value("general.architecture") == "llama" and value("llama.attention.head_count_kv") == 2
    assert value("tokenizer.ggml.tokens")[:3] == ["<pad>", "<s>", "</s>"] and value("tokenizer.ggml.token_type")[:4] == [3, 3, 3, 1]
    assert value("tokenizer.ggml.pre") == "gpt-2" and value("tokenizer.ggml.eos_token_id") == 2
    assert any("llama.cpp splits text by its rule 'gpt-2'" in note for note in llama.model.notes)


def test_rows_of_other_lengths_take_other_blocks_or_stay(tmp_path):
    """Rows of 64 take blocks of 32, rows of 48 stay as they are; routers too."""
    target = opened(tmp_path, "Qwen3MoeForCausalLM", moe_intermediate_size=48, num_hidden_layers=1).target("gguf")
    _, options = made(target, lambda place: "ggml type=q4_k")
    assert options["model.layers.0.mlp.experts.gate_up_proj"] == "ggml type=q5_0"
    reasons = {unit.name: target.refusal(unit) for unit in target.model.units.values()}
    assert reasons["model.layers.0.mlp.experts.down_proj[0]"] == "target: rows of other lengths than blocks"
    types = {name: tensor.place.type for name, tensor in target.layout({}, {}, frozenset()).tensors.items()}
    assert reasons["model.layers.0.mlp.gate.weight"] == "target: parameter" and types["blk.0.ffn_gate_inp.weight"] == 0


def test_one_type_for_all_experts_of_a_stack(tmp_path):
    target = opened(tmp_path, "Qwen3MoeForCausalLM", num_hidden_layers=1).target("gguf")
    (site,) = (site for site in target.sites() if site.name == "model.layers.0.mlp.experts.down_proj")
    unit = site.units[0]
    forms = {unit.name: Ggml(type="q8_0", rounding="nearest").code(target.model.matrix(unit).float(), Stats(), unit.dtype)}
    with pytest.raises(ModelError, match="must have one type for this target, have bf16, q8_0"):
        target.layout(forms, {}, frozenset())


def test_a_byte_that_the_disk_turned_is_found(llama, tmp_path):
    target = llama.target("gguf")
    target.layout({}, {}, frozenset()).write(tmp_path)
    target.finish(tmp_path, {}, frozenset())
    path = tmp_path / "model.gguf"
    body = bytearray(path.read_bytes())
    body[-100] ^= 1
    path.write_bytes(body)
    with pytest.raises(ModelError, match="must be read back as it was written"):
        target.verify(tmp_path, {})
    body[:4] = struct.pack("<I", 0)
    path.write_bytes(body)
    with pytest.raises(ModelError, match="format's own reader"):
        target.verify(tmp_path, {})


def test_what_llama_cpp_computes_otherwise_is_refused_before_any_work(tmp_path):
    with pytest.raises(ModelError, match="computes this architecture with hidden_act 'silu' alone, is 'gelu'"):
        opened(tmp_path / "a", hidden_act="gelu").target("gguf")
    with pytest.raises(ModelError, match="scales attention by the width of a head, 16, the model by 64"):
        opened(tmp_path / "b", "Gemma2ForCausalLM", query_pre_attn_scalar=64).target("gguf")
    with pytest.raises(ModelError, match="OPTForCausalLM is none"):
        opened(tmp_path / "c", "OPTForCausalLM").target("gguf")


def test_a_model_without_a_tokenizer_is_refused():
    model, batches = zoo.build("llama")
    with pytest.raises(ModelError, match="has no tokenizer"):
        modicum.fit(model, data=batches, target="gguf", method="ggml type=q8_0")


def test_a_window_that_llama_cpp_does_not_have_ends_the_context(tmp_path):
    subject = opened(tmp_path, "MistralForCausalLM", sliding_window=24)
    layout = subject.target("gguf").layout({}, {}, frozenset())
    assert layout.values["llama.context_length"] == 24
    assert any("this model's see 24 tokens" in note for note in subject.model.notes)


def test_pieces_have_the_scores_of_their_merges():
    """llama.cpp merges the neighbours of the highest score first: the order of the merges."""
    tokenizer = spelling.pieces([TEXT], merges=40)
    words = vocabulary(SimpleNamespace(name="m", tokenizer=tokenizer, config=SimpleNamespace()), 400).values
    texts, scores, kinds = (words[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert [scores[texts.index("".join(pair))] for pair in merges] == [-float(place) for place in range(len(merges))]
    assert words["tokenizer.ggml.model"] == "llama" and words["tokenizer.ggml.add_space_prefix"] is True
    assert kinds[:4] == [2, 3, 3, 6] and kinds[texts.index("▁")] == 1 and kinds[-1] == 5 and texts[-1] == "[PAD399]"


def test_blocks_that_go_are_gone(llama, tmp_path):
    target = llama.target("gguf")
    assert isinstance(target, Gguf)
    dropped = frozenset({"model.layers.1"})
    layout = target.layout({}, {}, dropped)
    layout.write(tmp_path)
    target.finish(tmp_path, {}, dropped)
    module, _ = target.verify(tmp_path, {})
    assert layout.values["llama.block_count"] == 2 and len(module.model.layers) == 2
    there = module.get_parameter("model.layers.1.self_attn.k_proj.weight")
    assert torch.equal(there, llama.model.weights.read("model.layers.2.self_attn.k_proj.weight"))
    assert target.fixed_bytes(set(), dropped) == layout.nbytes()


def cut(subject, target, left, dropped=()):
    """Forms of coupled cuts that leave ``left(block, kind, groups)`` of each one's groups."""
    forms = {}
    for name, site in subject.cuts.items():
        _, _, block, kind = name.partition(":")[0].split(".")
        count = len(site.axes[-1].groups)
        keep = left(int(block), kind, count)
        if keep == count or any(name.startswith(f"{other}.") for other in dropped):
            continue
        for unit, incision in Incision.of_cuts([site], {name: list(range(count - keep, count))}).items():
            inner = incision.pick(target.model.matrix(target.model.units[unit])).contiguous()
            forms[unit] = Cut(Dense(inner), incision.rows, incision.columns)
    return forms


@pytest.mark.parametrize("dropped", [frozenset(), frozenset(["model.layers.1"])])
def test_blocks_of_different_widths_are_told_one_by_one(dropped, tmp_path):
    subject = opened(tmp_path, num_hidden_layers=4, num_key_value_heads=2)
    target = subject.target("gguf")
    shares = {0: 2, 1: 1, 2: 4, 3: 1}
    forms = cut(subject, target, lambda block, kind, count: count // (shares[block] if kind == "mlp" else min(2, 1 + block)), dropped)
    assert not target.holds(Change(forms=forms, dropped=tuple(dropped)))
    layout = target.layout(forms, {}, dropped)
    layout.write(tmp_path)
    target.finish(tmp_path, forms, dropped)
    module, told = target.verify(tmp_path, forms)
    assert (tmp_path / "model.gguf").stat().st_size == layout.nbytes()
    values, left = layout.values, [place for place in range(4) if f"model.layers.{place}" not in dropped]
    assert values["general.architecture"] == "deci"
    inner = [module.get_submodule(f"model.layers.{place}.mlp").down_proj.in_features for place in range(len(left))]
    assert values["deci.feed_forward_length"] == inner == [subject.model.config.intermediate_size // shares[place] for place in left]
    heads = subject.model.config.num_attention_heads
    assert values["deci.attention.head_count"] == [heads if place == 0 else heads // 2 for place in left]
    assert modicum.load(tmp_path)(torch.arange(3, 40)[None]).logits.isfinite().all()
    with pytest.raises(ModelError, match=r"must be of one width, which is all that a config says, are not \(deci\)"):
        open_source(tmp_path / "model.gguf")


def test_blocks_cut_alike_are_told_as_ever(tmp_path):
    subject = opened(tmp_path, num_hidden_layers=2)
    target = subject.target("gguf")
    layout = target.layout(cut(subject, target, lambda block, kind, count: count // 2), {}, frozenset())
    assert layout.values["general.architecture"] == "llama" and layout.values["llama.attention.head_count"] == 2
    assert all(len(members) == 1 for members in target.together(subject.cuts).values())


def test_an_architecture_that_has_no_word_for_it_is_cut_alike(tmp_path):
    subject = opened(tmp_path, "Qwen3ForCausalLM", num_hidden_layers=2)
    target = subject.target("gguf")
    assert {len(members) for members in target.together(subject.cuts).values()} == {2}
    forms = cut(subject, target, lambda block, kind, count: count // (1 + block))
    assert "must be the same in all blocks" in target.holds(Change(forms=forms))
