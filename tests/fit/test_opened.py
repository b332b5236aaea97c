"""The original is the original as its users load it, and what a caller gives stays as it was."""

import re
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from torch.ao.nn.quantized import dynamic as nnq

import modicum
from modicum.core.errors import ModelError
from modicum.data.splits import call
from modicum.measure import compared as comparing
from modicum.measure.compared import compared
from modicum.models.open import open_model

IDS = torch.arange(24).reshape(2, 12) % 60
SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip


def saved(path, cls, config, dtype=torch.bfloat16, change=lambda state: state):
    """A tiny checkpoint whose tensors were changed after it was saved."""
    torch.manual_seed(0)
    model = cls(config).to(dtype)
    model.config.dtype = dtype
    model.save_pretrained(path)
    file = path / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return path


def llama(path, change=lambda state: state, dtype=torch.bfloat16, **more):
    return saved(path, transformers.LlamaForCausalLM, transformers.LlamaConfig(**SMALL | more), dtype, change)


def t5(path, change):
    config = transformers.T5Config(vocab_size=64, d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2, tie_word_embeddings=True)
    return saved(path, transformers.T5ForConditionalGeneration, config, torch.float32, change)


def another(name, like):
    """Adds a value of its own for a tied weight."""
    return lambda state: state | {name: torch.randn(state[like].shape).to(state[like].dtype)}


def agree(path, batch):
    """The opened model gives what plain Transformers gives, to the bit."""
    model = open_model(path)
    plain = type(model.module).from_pretrained(path)
    model.weights.load(model.weights.names)
    with torch.no_grad():
        assert torch.equal(call(model.module, batch).logits, call(plain, batch).logits)
    assert "weights equal, outputs differ by at most 0 of" in compared(open_model(path), batch, None)
    return model


def test_a_head_that_the_config_calls_tied_and_the_file_holds_apart(tmp_path):
    model = agree(llama(tmp_path, another("lm_head.weight", "model.embed_tokens.weight"), tie_word_embeddings=True), {"input_ids": IDS})
    assert "lm_head.weight" in model.weights.names and model.config.tie_word_embeddings is False
    assert any(note.startswith("lm_head.weight: tied by the config") for note in model.notes)


def test_a_head_that_is_stored_twice_with_one_value_stays_tied(tmp_path):
    twice = lambda state: state | {"lm_head.weight": state["model.embed_tokens.weight"].clone()}
    model = agree(llama(tmp_path, twice, tie_word_embeddings=True), {"input_ids": IDS})
    assert "lm_head.weight" not in model.weights.names and model.config.tie_word_embeddings and not model.notes


@pytest.mark.parametrize("name", ["lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"])
def test_embeddings_of_an_encoder_and_its_decoder_that_differ(tmp_path, name):
    model = agree(t5(tmp_path, another(name, "shared.weight")), {"input_ids": IDS, "decoder_input_ids": IDS})
    assert name in model.weights.names


def test_a_checkpoint_that_holds_only_the_name_that_is_tied(tmp_path):
    moved = lambda state: {"lm_head.weight" if "embed" in name else name: value for name, value in state.items()}
    agree(llama(tmp_path, moved, tie_word_embeddings=True), {"input_ids": IDS})


@pytest.mark.parametrize("part", ["norm", "lm_head", "embed_tokens", "layers.1.mlp.down_proj"])
def test_weights_of_another_dtype_are_loaded_in_that_of_the_config(tmp_path, part):
    wider = lambda state: {name: value.float() if part in name else value for name, value in state.items()}
    model = agree(llama(tmp_path, wider), {"input_ids": IDS})
    assert {model.weights.dtype(name) for name in model.weights.names} == {torch.bfloat16}
    assert any("another dtype" in note for note in model.notes)


def test_without_a_dtype_in_the_config_the_first_name_decides(tmp_path):
    llama(tmp_path, lambda state: {name: value.float() if name == "lm_head.weight" else value for name, value in state.items()})
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"dtype": "bfloat16",', ""))
    assert agree(tmp_path, {"input_ids": IDS}).dtype == torch.float32


def test_tensors_that_the_class_leaves_alone_are_named(tmp_path):
    config = transformers.DeepseekV3Config(
        **SMALL | {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
        n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, moe_intermediate_size=16, first_k_dense_replace=1,
    )  # fmt: skip
    cls = transformers.DeepseekV3ForCausalLM
    more = lambda state: state | {f"model.layers.61.{part}.weight": torch.zeros(8, 4) for part in ("eh_proj", "enorm")}
    model = open_model(saved(tmp_path, cls, config, torch.float32, more))
    assert any(note.startswith("2 tensors of the checkpoint (256 bytes), among them model.layers.61.eh_proj") for note in model.notes)


def test_a_difference_is_told_before_any_work(tmp_path, monkeypatch):
    model = open_model(llama(tmp_path))
    read = model.weights.read
    monkeypatch.setattr(model.weights, "read", lambda name: read(name) + (name == "model.norm.weight"))
    with pytest.raises(ModelError, match=r"model\.norm\.weight must be what from_pretrained loads, differs"):
        compared(model, {"input_ids": IDS}, None)


def test_outputs_that_differ_are_told(tmp_path):
    model = open_model(llama(tmp_path))
    model.module.model.rotary_emb.inv_freq *= 3
    with pytest.raises(ModelError, match=r"must give what from_pretrained's model gives, .*rotary_emb\.inv_freq"):
        compared(model, {"input_ids": IDS}, None)


def test_what_is_too_large_is_not_loaded_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(comparing, "_MOST", 10)
    assert "too large" in compared(open_model(llama(tmp_path)), {"input_ids": IDS}, None)


# Modules


class Net(nn.Module):
    """Two linears, and whatever else a caller keeps beside them."""

    def __init__(self, **beside):
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 8)
        self.calls = 0
        vars(self).update(beside)

    def forward(self, x):
        self.calls += 1
        return self.second(torch.relu(self.first(x)))


DATA = [torch.randn(4, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


def fitted(module):
    """The result of a short run, whose outputs are those of 8 bits."""
    result = modicum.fit(module.eval(), method="nearest bits=8 group=32", data=DATA)
    with torch.no_grad():
        got, wanted = result.model(DATA[0]), module(DATA[0])
    assert 0 < float((got - wanted).norm() / wanted.norm()) < 0.02 and result.receipt["coverage"]["share"] == 1
    return result


@pytest.mark.parametrize(
    "thing", [threading.Lock, lambda: memoryview(b"held"), lambda: iter(x for x in ()), lambda: {"deep": [threading.RLock()]}]
)
def test_what_cannot_be_copied_is_shared(thing):
    held = thing()
    fitted(Net(held=held))


@pytest.mark.parametrize("kind", [threading.Lock, lambda: threading.Semaphore(1)], ids=["lock", "semaphore"])
def test_a_lock_that_forwards_hold_stops_none_of_them(kind):
    """Each stands still within it; with the caller's own, one would wait for the other for ever."""

    class Held(Net):
        def forward(self, x):
            with self.held:
                return super().forward(x)

    net = Held(held=kind())
    result = fitted(net)
    assert type(result.model.held) is type(net.held) and not getattr(net.held, "locked", lambda: False)()


def test_a_function_over_the_module_is_made_over_the_copy():
    net = Net()
    net.head = lambda x: net.second(x)
    net.forward = lambda x: net.head(torch.relu(net.first(x)))
    fitted(net)


@pytest.mark.parametrize("inside", [False, True])
def test_compiled_modules_run_as_the_module_beneath(inside):
    net = Net().eval()
    wrapped = torch.compile(net, backend="eager")
    if inside:
        net.first.compile(backend="eager")
        net.second = torch.compile(net.second, backend="eager")
        net.compile(backend="eager")
    before = [net._compiled_call_impl, net.first._compiled_call_impl, net.second]
    result = modicum.fit(wrapped, method="nearest bits=8 group=32", data=DATA)
    assert result.receipt["model"]["class"] == "Net" and [net._compiled_call_impl, net.first._compiled_call_impl, net.second] == before


def test_a_compiled_forward_is_that_of_the_copy():
    net = Net().eval()
    net.second.forward = torch.compile(net.second.forward, backend="eager")
    forward = net.second.forward
    result = modicum.fit(net, method="nearest bits=2 group=0", keep=["first"], data=DATA)
    assert net.second.forward is forward and result.receipt["quality"]["mean"] > 1e-3


def test_torchscript_is_refused():
    with pytest.raises(ModelError, match="Give the module it was made of"):
        modicum.fit(torch.jit.script(nn.Sequential(nn.Linear(32, 32))), method="nearest bits=8", data=DATA)


def test_the_callers_module_stays_as_it_was():
    net = Net(config={"width": 32}).train()
    net.first.weight.requires_grad_(False)
    state, parts = torch.random.get_rng_state(), {name: (id(p), p.requires_grad, p._version) for name, p in net.named_parameters()}
    modicum.fit(net, method="nearest bits=8 group=32", data=DATA)
    with pytest.raises(modicum.ModicumError):
        modicum.fit(net, "0.1bpw", data=DATA)
    assert parts == {name: (id(p), p.requires_grad, p._version) for name, p in net.named_parameters()}
    assert net.training and net.second.training and net.calls == 0 and "forward" not in vars(net.first)
    assert torch.equal(state, torch.random.get_rng_state())


class Scaled(nn.Module):
    """Keeps what is no weight in its extra state."""

    def __init__(self, *state):
        super().__init__()
        self.net, self.state = nn.Linear(64, 64), state

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state

    def forward(self, x):
        return self.net(x) * self.state[0]["scale"] + self.state[1]


def test_extra_state_is_written_and_given_back(tmp_path):
    data = [torch.randn(8, 64) for _ in range(4)]
    inner = nn.Sequential(Scaled({"scale": 3.25, 4: [True, None, "a", (2**70,)]}, torch.arange(64, dtype=torch.float64)))
    result = modicum.fit(inner, method="nearest bits=8", data=data, out=tmp_path / "out")
    fresh = modicum.load(result.out, into=nn.Sequential(Scaled()))
    with torch.no_grad():
        assert torch.equal(fresh(data[0]), result.model(data[0]))
    assert fresh[0].state[0] == {"scale": 3.25, 4: [True, None, "a", (2**70,)]} and fresh[0].state[1].dtype == torch.float64
    assert not any("extra state" in event for event in result.receipt["events"])
    with pytest.raises(ModelError, match="must take extra state"):
        modicum.load(result.out, into=nn.Sequential(nn.ModuleDict({"net": nn.Linear(64, 64)})))


def test_extra_state_that_no_file_holds_safely_is_told():
    result = modicum.fit(Scaled({"scale": 2.0}, 0.0, threading.Lock), method="nearest bits=8", data=[torch.randn(8, 64) for _ in range(4)])
    assert any("extra state of the module: is not written, it holds a" in event for event in result.receipt["events"])


class Writing(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(64, 64)

    def forward(self, x):
        with torch.no_grad():
            self.net.weight.mul_(0.5)
        return self.net(x)


def test_a_forward_that_writes_to_its_weights_is_refused():
    with pytest.raises(ModelError, match="writes to net.weight"):
        modicum.fit(Writing(), method="nearest bits=8", data=[torch.randn(8, 64) for _ in range(4)])


def test_embeddings_that_shorten_what_they_look_up_leave_the_callers_alone():
    module = nn.Sequential(nn.Embedding(32, 64, max_norm=1.0), nn.Linear(64, 8))
    before = module[0].weight.detach().clone()
    result = modicum.fit(module, method="nearest bits=8 group=0", data=[torch.randint(32, (4, 6)) for _ in range(4)])
    assert torch.equal(module[0].weight, before) and result.receipt["quality"]["mean"] < 1e-3


def test_a_comparison_that_fails_is_an_event(tmp_path, monkeypatch):
    path = llama(tmp_path / "model")
    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", lambda *_, **__: 1 / 0)
    result = modicum.fit(path, method="nearest bits=8 group=16", data=[{"input_ids": IDS + shift} for shift in range(3)], target="modicum")
    assert any("not compared: from_pretrained does not load it" in event for event in result.receipt["events"])


def test_padding_counts_as_no_token(tmp_path):
    path = llama(tmp_path / "model")
    mask = torch.ones_like(IDS)
    mask[0, 8:] = 0
    data = [{"input_ids": IDS + shift, "attention_mask": mask} for shift in range(5)]
    counted = modicum.fit(path, method="nearest bits=8 group=16", data=data, target="modicum").receipt["data"]
    assert counted["calibration_tokens"] == 3 * 20 and counted["test_tokens"] == 20


@pytest.mark.parametrize("kind", [nn.Identity, Scaled])
def test_an_error_leaves_no_temporary_folder(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(modicum.ModicumError):
        modicum.fit(kind(), method="nearest bits=8", data=[torch.randn(8, 64) for _ in range(4)])
    assert not list(tmp_path.iterdir())


class Holder:
    """What carries a model about, such as a pipeline."""

    def __init__(self):
        self.model = nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: nn.Linear, "is the class Linear. Build a model of it"),
        (Holder, "is a Holder, which holds one. Pass its .model"),
        (lambda: nn.Linear(4, 4).state_dict(), "of weights alone, which does not say what is done with them"),
        (lambda: 7, "is a int. Pass one of those"),
        (lambda: nn.Sequential(nnq.Linear(4, 4, dtype=torch.float16)), "must not be quantized already, its layer 0 is"),
    ],
)
def test_what_is_no_model_is_told_with_what_to_pass(made, said):
    with pytest.raises(ModelError, match=re.escape(said)):
        modicum.fit(made(), method="nearest bits=8", data=[(torch.randn(2, 4),)])


def test_tables_that_a_class_computes_and_never_saves(tmp_path):
    torch.manual_seed(0)
    config = transformers.MarianConfig(
        vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=48,
        decoder_ffn_dim=48, max_position_embeddings=16, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    transformers.MarianMTModel(config).eval().save_pretrained(tmp_path / "model")
    assert not any("embed_positions" in name for name in load_file(tmp_path / "model" / "model.safetensors"))
    batches = [{"input_ids": IDS[:, :8] + start, "decoder_input_ids": IDS[:, 4:12] + start} for start in range(4)]
    plain = transformers.MarianMTModel.from_pretrained(tmp_path / "model").eval()
    result = modicum.fit(tmp_path / "model", method="nearest bits=8 group=0", data=batches, target="modicum", out=tmp_path / "out")
    torch.testing.assert_close(result.model(**batches[0]).logits, plain(**batches[0]).logits, rtol=0.1, atol=0.02)
    assert 0 < result.receipt["quality"]["mean"] < 1e-3
    whole = modicum.fit(tmp_path / "model", "1MB", data=batches, target="modicum", search_time=0).model
    assert torch.equal(whole(**batches[0]).logits, plain(**batches[0]).logits)


def test_numbers_that_stand_beside_weights_in_memory_of_their_own(tmp_path):
    """Of a class that makes its buffers like its parameters, which have no memory yet when a checkpoint is opened."""
    config = transformers.IBertConfig(**{name: SMALL[name] for name in ("vocab_size", "hidden_size", "intermediate_size")},
                                      num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=20)  # fmt: skip
    source = saved(tmp_path / "ibert", transformers.IBertForMaskedLM, config, torch.float32)
    model = open_model(source)
    assert not any(buffer.is_meta for buffer in model.module.buffers())
    batches = [{"input_ids": (IDS + seed) % 60} for seed in range(3)]
    result = modicum.fit(source, method="nearest bits=8 group=16", data=batches, target="modicum", out=tmp_path / "out")
    assert 0 < result.receipt["quality"]["mean"] < 0.1


def test_numbers_too_large_for_a_table_are_told_by_the_inputs_name():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.kinds = nn.Embedding(60, 16), nn.Embedding(2, 16)

        def forward(self, words, kinds):
            return self.words(words) + self.kinds(kinds)

    with pytest.raises(modicum.DataError, match=re.escape("words [2, 12] with numbers up to 23 and kinds [2, 12] with numbers up to")):
        modicum.fit(Two(), method="nearest bits=8", data=[(IDS, IDS + seed) for seed in range(3)])


@pytest.mark.parametrize("part", [torch.nn.LazyLinear(8), torch.nn.LazyBatchNorm1d(affine=False)])
def test_what_has_no_shape_yet_is_refused(part):
    with pytest.raises(ModelError, match="must have a shape, has none before its module's first call"):
        modicum.fit(torch.nn.Sequential(torch.nn.Linear(8, 8), part), "8bpw", data=[torch.randn(4, 8)])


def test_a_forward_may_write_into_its_batch():
    class Written(Net):
        def forward(self, x):
            x += 1
            return super().forward(x)

    net, given = Written().eval(), [torch.randn(4, 32) for _ in range(6)]
    before = [batch.clone() for batch in given]
    result = modicum.fit(net, method="nearest bits=8 group=32", data=given)
    assert all(map(torch.equal, given, before)) and 0 < result.receipt["quality"]["mean"] < 1e-3
    with torch.no_grad():
        got, wanted = result.model(before[0].clone()), net(before[0].clone())
    assert float((got - wanted).norm() / wanted.norm()) < 0.02


def test_layers_called_in_another_thread_are_refused():
    class Threaded(Net):
        def forward(self, x):
            with ThreadPoolExecutor(1) as pool:
                return self.second(pool.submit(self.first, x).result())

    with pytest.raises(ModelError, match="first: must be called in the thread that calls forward"):
        modicum.fit(Threaded().eval(), method="nearest bits=8 group=32", data=DATA)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_the_dtype_of_a_model_is_that_of_its_real_numbers(dtype):
    class Mixed(Net):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.ones(64, 32).to(dtype), requires_grad=False)

        def forward(self, x):
            return super().forward(x * self.table[0].real)

    receipt = modicum.fit(Mixed().eval(), method="nearest bits=8 group=32", data=DATA).receipt
    assert 0 < receipt["quality"]["mean"] < 1e-3 and receipt["compute"]["stored"] == "float32"


def test_without_a_real_number_there_is_nothing_to_compress():
    net = nn.Module()
    net.table = nn.Parameter(torch.ones(8, 32, dtype=torch.complex64))
    net.forward = lambda x: (x.to(torch.complex64) @ net.table.T).abs()
    with pytest.raises(ModelError, match="must have weights that are real numbers, has none"):
        modicum.fit(net.eval(), method="nearest bits=8 group=32", data=DATA)
