"""A container opened by Transformers: refused by name without modicum, right with it, whatever the class, the plan and the dtype."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import modicum

# A budget without a search: two options, no gradients.
FAST = {"budget": "8bpw", "menu": "nearest bits=4,nearest bits=8", "harm": "error", "search_time": 0}
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 256, "max_position_embeddings": 64}


def bert(cls=BertModel):
    torch.manual_seed(0)
    return cls(BertConfig(num_hidden_layers=2, **SIZES)).eval()


def llama(**more):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, num_key_value_heads=2, **SIZES, **more)).eval()


def batches():
    torch.manual_seed(1)
    return [{"input_ids": torch.randint(5, 256, (8, 16))} for _ in range(3)]


def container(folder, model, **how):
    model.save_pretrained(folder / "in")
    modicum.fit(str(folder / "in"), data=batches(), target="modicum", out=str(folder / "out"), **how)
    return folder / "out"


def state(module):
    return {name: value for name, value in module.state_dict().items()}


def require_same(opened, wanted):
    one, other = state(opened), state(wanted)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


PLAIN = """
import sys, transformers

loads = (
    lambda path: transformers.AutoModel.from_pretrained(path),
    lambda path: transformers.AutoModelForMaskedLM.from_pretrained(path),
    lambda path: transformers.BertForMaskedLM.from_pretrained(path),
    lambda path: transformers.pipeline("fill-mask", model=path, tokenizer=object()),
)
for load in loads:
    try:
        load(sys.argv[1])
        print("opened")
    except Exception as error:
        print(type(error).__name__, " ".join(str(error).split()))
"""


def test_without_modicum_it_is_refused_by_name(encoder):
    done = subprocess.run([sys.executable, "-c", PLAIN, str(encoder)], capture_output=True, text=True, timeout=120)
    said = done.stdout.splitlines()
    assert done.returncode == 0 and len(said) == 4, done.stderr
    assert all("modicum container" in line for line in said), done.stdout


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return container(tmp_path_factory.mktemp("encoder"), bert(BertForMaskedLM), **FAST)


@pytest.mark.parametrize(
    "order",
    [
        "import transformers.quantizers.auto, modicum",
        *(pytest.param(order, marks=pytest.mark.slow) for order in ("import modicum, transformers", "import transformers, modicum")),
    ],
)
def test_after_the_import_it_opens_whichever_came_first(encoder, order):
    code = (
        f"{order}, sys\nprint(transformers.AutoModel.from_pretrained(sys.argv[1]).embeddings.word_embeddings.weight.double().sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(encoder)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == modicum.load(encoder).bert.embeddings.word_embeddings.weight.double().sum().item()


def test_the_same_class_is_what_load_gives(encoder):
    opened, report = AutoModelForMaskedLM.from_pretrained(encoder, output_loading_info=True)
    require_same(opened, modicum.load(encoder))
    assert not any(report.values())


def test_a_base_model_takes_its_part(encoder):
    opened = AutoModel.from_pretrained(encoder, add_pooling_layer=False)
    require_same(opened, modicum.load(encoder).bert)


def test_a_model_with_a_head_takes_the_base(tmp_path):
    out = container(tmp_path, bert(), **FAST)
    opened = AutoModelForSequenceClassification.from_pretrained(out)
    require_same(opened.bert, modicum.load(out))


@pytest.mark.parametrize("method", ["ziplm keep=0.5 | nearest bits=4", "replaceme count=1"])
def test_cut_blocks_heads_and_channels(tmp_path, method):
    whole = llama()
    out = container(tmp_path, whole, method=method)
    opened = LlamaForCausalLM.from_pretrained(out)
    require_same(opened, modicum.load(out))
    assert opened.num_parameters() < 0.9 * whole.num_parameters()


@pytest.mark.parametrize("tied", [False, True])
def test_another_dtype_and_saving_what_was_opened(tmp_path, tied):
    out = container(tmp_path, llama(tie_word_embeddings=tied), **FAST)
    wanted = modicum.load(out).to(torch.bfloat16)
    opened = LlamaForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
    require_same(opened, wanted)
    opened.save_pretrained(tmp_path / "dense")
    require_same(LlamaForCausalLM.from_pretrained(tmp_path / "dense"), wanted)


def test_transposed_weights(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=256, n_positions=64)).eval()
    out = container(tmp_path, model, **FAST)
    opened = AutoModelForCausalLM.from_pretrained(out)
    require_same(opened, modicum.load(out))


def test_it_is_not_compressed_again(encoder):
    with pytest.raises(modicum.ModelError, match="quantized already but by .*, is \\(modicum\\)"):
        modicum.open_model(str(encoder))


def test_older_ones_without_the_key_load(encoder, tmp_path):
    for path in encoder.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"], config["transformers_weights"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    require_same(modicum.load(tmp_path), modicum.load(encoder))


def test_a_unit_that_is_not_described_is_refused(encoder, tmp_path):
    for path in encoder.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    body = json.loads((tmp_path / "modicum.json").read_text())
    body["units"].pop(sorted(body["units"])[0])
    (tmp_path / "modicum.json").write_text(json.dumps(body))
    with pytest.raises(modicum.ModelError, match="belongs to no unit"):
        AutoModel.from_pretrained(tmp_path)


def test_another_model_is_refused(encoder):
    with pytest.raises(modicum.ModelError, match="takes too little"):
        LlamaForCausalLM.from_pretrained(
            encoder, config=LlamaConfig(num_hidden_layers=1, quantization_config={"quant_method": "modicum"}, **SIZES)
        )
