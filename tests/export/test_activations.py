"""Codes times codes: what Transformers computes of the files is what the receipt says, and what no runtime reads is refused."""

import copy
import json
from functools import cache

import pytest
import torch
import transformers

import modicum
from modicum.core.errors import ModelError, SettingError
from modicum.core.option import Option
from modicum.data.splits import from_batches
from modicum.export.taking import Taking
from modicum.table.taking import Taking as Asked
from modicum.testing import zoo

SLOW = ("int8 dynamic", "fp8 static")
KINDS = [
    "int8 static",
    "fp8 dynamic",
    "int4 dynamic",
    "mxfp4 dynamic",
    "nvfp4 dynamic",
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW),
]
WEIGHTS = {"int8": "nearest bits=8 group=0", "fp8": "float8", "int4": "nearest bits=4 group=32"}
WEIGHTS |= {"mxfp4": "float4 format=mxfp4", "nvfp4": "float4"}
# Of weights their format, type and strategy, of inputs the strategy where scales are found while running.
SCHEMES = {
    "int8": ("int-quantized", "int", "channel", "token"), "fp8": ("float-quantized", "float", "channel", "token"),
    "int4": ("pack-quantized", "int", "group", "token"), "mxfp4": ("mxfp4-pack-quantized", "float", "group", "group"),
    "nvfp4": ("nvfp4-pack-quantized", "float", "tensor_group", "tensor_group"),
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    """A decoder some of whose channels carry far more than others, as trained ones do."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = transformers.LlamaConfig(**sizes, vocab_size=64, max_position_embeddings=32)
    module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        for layer in module.model.layers:
            layer.input_layernorm.weight[3] *= 20
            layer.post_attention_layernorm.weight[5] *= 20
        module.lm_head.weight *= 20
    return module, [{"input_ids": torch.randint(3, 64, (2, 16))} for _ in range(6)]


def fitted(model, out, kind, target="transformers", **settings):
    format, scale = kind.split()
    given = settings or {"method": WEIGHTS[format]}
    return modicum.fit(
        copy.deepcopy(model[0]),
        data=model[1],
        out=out,
        target=target,
        activations=format,
        activation_scale=scale,
        search_time=0,
        compute="bfloat16",
        **given,
    )


@pytest.fixture(scope="module")
def results(model, tmp_path_factory):
    """What a run of each kind gave, made once."""
    return cache(lambda kind: fitted(model, tmp_path_factory.mktemp("activations") / "out", kind))


def divergence(model, other):
    """Mean KL per token on the sequences that a run of this data judges by."""
    found = []
    with torch.no_grad():
        for batch in from_batches(model[1], seed=0).test:
            p, q = (each(**batch, use_cache=False).logits.double().log_softmax(-1) for each in (model[0], other))
            found.append((p.exp() * (p - q)).sum(-1).mean(-1))
    return float(torch.cat(found).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_what_transformers_computes_of_the_files_is_what_the_receipt_says(model, results, kind):
    receipt, out = results(kind).receipt, results(kind).out
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto").eval()
    assert receipt["quality"]["mean"] == pytest.approx(divergence(model, loaded), rel=1e-4)
    assert receipt["verification"]["logits"]["largest"] < 1e-6
    assert all(
        site["option"].endswith(("| activations", "format=fp8", "scale=static", "format=int4", "format=mxfp4", "format=nvfp4"))
        for site in receipt["sites"]
    )
    assert receipt["request"]["activations"] == kind.split()[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_scheme_is_what_runtimes_multiply_by(results, kind):
    format, scale = kind.split()
    config = json.loads((results(kind).out / "config.json").read_text())["quantization_config"]
    (group,) = config["config_groups"].values()
    kind, type_, strategy, found = SCHEMES[format]
    assert (group["format"], group["weights"]["type"], group["weights"]["strategy"]) == (kind, type_, strategy)
    inputs = group["input_activations"]
    assert (inputs["type"], inputs["num_bits"], inputs["symmetric"]) == (type_, int(format[-1]), True)
    assert (inputs["strategy"], inputs["dynamic"]) == (
        (found, "local" if format == "nvfp4" else True) if scale == "dynamic" else ("tensor", False)
    )


@pytest.mark.parametrize(
    "kind", ["int8 static", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("fp8 dynamic", "mxfp4 dynamic", "nvfp4 dynamic"))]
)
def test_the_container_computes_the_same(model, tmp_path, kind):
    result = fitted(model, tmp_path / "out", kind, target="modicum", method=WEIGHTS[kind.split()[0]])
    assert result.receipt["quality"]["mean"] == pytest.approx(divergence(model, modicum.load(tmp_path / "out")), rel=1e-4)
    filled = copy.deepcopy(model[0])
    for _ in range(2):  # what filled a module before does not round twice
        modicum.load(tmp_path / "out", into=filled)
    hooks = [hook for part in filled.modules() for hook in part._forward_pre_hooks.values()]
    assert len(hooks) == 8 and all(isinstance(hook, Taking) for hook in hooks)
    told, word = [event for event in result.receipt["events"] if event.startswith("activations")], "four" if "4" in kind else "eight"
    assert told == [f"activations: 1 weights of {word} bits take their inputs as they are: model.embed_tokens.weight."]
    assert divergence(model, filled) == pytest.approx(result.receipt["quality"]["mean"], rel=1e-4)
    body = json.loads((tmp_path / "out" / "modicum.json").read_text())
    name, unit = next((name, unit) for name, unit in body["units"].items() if unit["form"]["kind"] == "activated")
    body["units"]["model.embed_tokens.weight"] = {**unit, "parameter": "model.embed_tokens.weight"}
    del body["units"][name]
    (tmp_path / "out" / "modicum.json").write_text(json.dumps(body))
    with pytest.raises(ModelError):
        modicum.load(tmp_path / "out", into=filled)


def test_a_budget_weighs_them_in_the_table(model, tmp_path):
    result = fitted(model, tmp_path / "out", "int8 dynamic", bpw=12, harm="error", menu="gptq bits=8 group=0")
    options = {site["option"] for site in result.receipt["sites"]}
    assert any(option.endswith("| activations") for option in options)
    assert not any("bits=8" in option and "activations" not in option for option in options)


INTEGERS = r"must stand beside weights in 8-bit integers, such as 'gptq bits=8 group=0', "
NOWHERE = r"hold it on no layer of this model, whose runtimes multiply 8-bit integers of one scale per row"
REFUSED = {
    "fp8 beside integers": (
        {"activations": "fp8", "method": "gptq bits=8 group=0"},
        r"activations fp8: must stand beside weights in 8-bit floats, 'float8', the method is gptq",
    ),
    "groups": (
        {"activations": "int8", "method": "gptq bits=8"},
        r"one scale per row, 'gptq bits=8' has one for 64 columns\. Write 'gptq bits=8 group=0'",
    ),
    "four bits": ({"activations": "int8", "method": "int4"}, INTEGERS + "the method is gptq bits=4"),
    "a menu without eight bits": (
        {"activations": "int8", "bpw": 5, "menu": "int2,int4"},
        INTEGERS + "the menu has gptq bits=2, gptq bits=4",
    ),
    "a scale alone": ({"activation_scale": "static", "method": "int4"}, r"activation_scale static: must stand beside activations"),
    "an unknown format": ({"activations": "int2", "method": "int4"}, r"activations 'int2': is not known"),
    "four bits beside eight": (
        {"activations": "int4", "method": "int8"},
        r"activations int4: must stand beside weights in 4-bit integers, such as 'gptq bits=4', the method is gptq bits=8",
    ),
    "four-bit floats beside whole numbers": (
        {"activations": "mxfp4", "method": "int4"},
        r"must stand beside weights in 4-bit floats under powers of two, 'float4 format=mxfp4', the method is gptq bits=4",
    ),
    "other scales than the weights'": (
        {"activations": "nvfp4", "method": "float4 format=mxfp4"},
        r"must stand beside weights in 4-bit floats under E4M3 scales, 'float4', the method is float4 format=mxfp4.*pass --activations mxfp4",
    ),
    "a static scale of four bits": (
        {"activations": "int4", "activation_scale": "static", "method": "int4"},
        r"activation_scale static: must be dynamic of int4, whose runtimes find scales themselves",
    ),
    "groups in an option": ({"method": "gptq bits=8 group=32 | activations"}, NOWHERE),
    "floats by whole numbers": ({"method": "float8 | activations"}, NOWHERE),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_runtime_reads_is_refused_before_any_work(model, tmp_path, case):
    settings, told = REFUSED[case]
    with pytest.raises(SettingError, match=told):
        modicum.fit(model[0], data=model[1], out=tmp_path / "out", target="transformers", **settings)
    assert not (tmp_path / "out").exists()


WHY = {
    "dtype": ("float4 format=mxfp4", "mxfp4", "whose readers bring four-bit floats back in bfloat16 alone, and its weights are float32"),
    "dtype alone": ("float4", None, "whose readers bring four-bit floats back in bfloat16 alone, and its weights are float32"),
    "scales": ("gptq bits=4 group=32 symmetric=true scales=6", "int4", "whose readers take scales of 16 bits, and scales=6 has fewer"),
    "scales alone": ("gptq bits=4 scales=6", None, "whose readers take scales of 16 bits, and scales=6 has fewer"),
    "tensor": ("gptq bits=4 group=-1", None, "whose readers take one scale for each row or group of columns, and group=-1 has one for all"),
    "method": ("kmeans", None, "whose readers have no format for kmeans"),
}


@pytest.mark.parametrize("case", WHY)
def test_a_method_that_a_target_holds_nowhere_is_refused_for_its_own_reason(model, tmp_path, case):
    method, inputs, why = WHY[case]
    module = copy.deepcopy(model[0]).float()
    with pytest.raises(SettingError) as error:
        modicum.fit(module, data=model[1], out=tmp_path / "out", target="transformers", method=method, activations=inputs)
    assert f"hold it on no layer of this model, {why}. Pass --target modicum." in str(error.value)


def test_a_target_that_decodes_takes_none(tmp_path):
    with pytest.raises(SettingError, match="activations mxfp4: target gguf rounds no inputs of this model"):
        modicum.fit("demo", out=tmp_path / "out", bpw=8, activations="mxfp4", target="gguf", samples=2, tokens=32, test_samples=1)


def test_a_plan_says_it_itself(model, results, tmp_path):
    plan = results("int8 static").out / "plan.json"
    with pytest.raises(SettingError, match=r"must not stand beside a plan, which says what each layer has"):
        modicum.fit(model[0], data=model[1], out=tmp_path / "out", plan=plan, activations="int8")


def test_a_declared_menu_has_whole_rows_and_a_written_one_what_is_written():
    taking = Asked.of("int8", "dynamic")
    texts = lambda options: [str(option) for option in options]
    menu = [Option.parse(text) for text in ("gptq bits=8", "gptq bits=4", "float8")]
    assert texts(taking.menu(menu, True)) == ["gptq bits=8 group=0 | activations", "gptq bits=4"]
    with pytest.raises(SettingError, match="Write 'gptq bits=8 group=0'"):
        taking.menu(menu, False)
    assert texts(Asked.of("int4", "dynamic").menu(menu, True)) == ["gptq bits=8", "gptq bits=4 | activations format=int4", "float8"]
    said = [Option.parse("gptq bits=8 group=0 | activations scale=static")]
    assert taking.menu(said, False) == said and taking.method(said[0]) == said[0]


def test_inputs_of_other_axes_are_taken_as_they_are_and_told(tmp_path):
    """There compressed-tensors takes one scale for many tokens, and runtimes one for each."""
    module, batches = zoo.build("opt", dtype=torch.bfloat16)
    settings = {"target": "transformers", "activations": "int8", "method": WEIGHTS["int8"]}
    result = modicum.fit(module, data=batches, out=tmp_path / "out", **settings)
    assert result.receipt["verification"]["logits"]["largest"] < 1e-6
    (told,) = [event for event in result.receipt["events"] if event.startswith("activations")]
    assert told.startswith("activations: 6 weights of eight bits take their inputs as they are: model.decoder.layers.0.fc1.weight")
