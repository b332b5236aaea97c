"""vLLM runs what is written for it, and makes of every layer what the files stand for.

vLLM wants another Transformers than this package's tests, so it runs in an environment of its own: ``MODICUM_VLLM`` names its python. One process
there (``vllm_beside.py``) reads all directories of a test; what it saw is judged here. Two things are compared:

- what each layer made of the inputs that it met, with what the files' numbers make of them in float32. Where vLLM computes in float32 the bound is
  1e-5 of the outputs' norm (5e-4 of whole numbers); its kernels for packed integers are of bfloat16 alone, which rounds weights and outputs by 2^-9
  each, bound 1e-2. A wrong scale, group or order gives errors near one, and inputs that were not rounded more than twice the bound, which is asked
  for.
- what each token's prediction is: its mean divergence from that of the same weights in float32, held against the one of Transformers in bfloat16.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import modicum
from modicum.data.splits import from_text
from modicum.delta.applying import apply
from modicum.delta.peft import to_peft
from modicum.export.loaded import loaded
from modicum.export.vllm.architectures import _ROWS
from modicum.forms.activated import Rounding
from modicum.models import cached
from modicum.models.open import open_model
from modicum.testing import zoo
from modicum.train.trained import trained

pytestmark = pytest.mark.filterwarnings("ignore")
PAGE = Path(__file__).parents[2] / "docs" / "guide" / "targets.md"
DEMO = Path(modicum.__file__).parent / "demo" / "model"
LENGTH = 64
ROUND, WORDS = "nearest bits=4 group=32", "CompressedTensorsWNA16"
EIGHT = ("CompressedTensorsW8A8Int8", "CPUInt8ScaledMMLinearKernel")

# What is written of the demo, by its name on the guide's page: settings of a fit; the scheme and the kernel that vLLM gives its layers; how inputs
# are rounded there. A kernel that begins with Decodes stands in for one that no processor has.
KINDS = {
    "4 bits, groups of 32": ({"method": "gptq bits=4 group=32"}, WORDS, "CPUWNA16LinearKernel", None),
    "4 bits, groups of 64": ({"method": "nearest bits=4 group=64"}, WORDS, "CPUWNA16LinearKernel", None),
    "4 bits, groups of 128": ({"method": "nearest bits=4 group=128"}, WORDS, "CPUWNA16LinearKernel", None),
    "4 bits, rows": ({"method": "nearest bits=4 group=0"}, WORDS, "CPUWNA16LinearKernel", None),
    "4 bits, layers of several groups, and dense ones": (
        {"method": ROUND, "set": ["*down_proj: group=128", "*layers.3.*: keep", "*layers.5.self_attn*: group=0"]},
        WORDS, "CPUWNA16LinearKernel", None,
    ),
    "4 bits, turned basis": ({"method": ROUND, "rotate": "hadamard"}, WORDS, "CPUWNA16LinearKernel", None),
    "8 bits, inputs in 8, a token's scale": ({"method": "nearest bits=8 group=0 | activations"}, *EIGHT, "token"),
    "8 bits, inputs in 8, one scale": (
        {"method": "nearest bits=8 group=0 | activations scale=static"}, *EIGHT, "int8",
    ),
    "the same, smoothed": (
        {"method": "nearest bits=8 group=0 | activations scale=static", "smooth": 0.5}, *EIGHT, "int8",
    ),
    "8-bit floats, inputs too, a token's scale": (
        {"method": "float8 | activations format=fp8"}, "CompressedTensorsW8A8Fp8", "ChannelWiseTorchFP8ScaledMMLinearKernel", "fp8",
    ),
    "4 bits, inputs in 4": ({"method": f"{ROUND} | activations format=int4"}, "CompressedTensorsWNA4Int", "CPUWNA16LinearKernel", None),
    "8 bits, groups of 32": ({"method": "nearest bits=8 group=32"}, WORDS, "DecodesWords", None),
    "8 bits, rows": ({"method": "nearest bits=8 group=0"}, WORDS, "DecodesWords", None),
    "2 bits": ({"method": "nearest bits=2 group=32", "target": "transformers", "allow_broken": True}, WORDS, "DecodesWords", None),
    "8-bit floats": ({"method": "float8"}, "CompressedTensorsW8A16Fp8", "DecodesFloats", None),
    "NVFP4": ({"method": "float4"}, "CompressedTensorsW4A4Fp4", "DecodesNvfp4", None),
    "MXFP4": ({"method": "float4 format=mxfp4"}, "CompressedTensorsW4A4Mxfp4", "DecodesMxfp4", None),
    "MXFP4, inputs too": ({"method": "float4 format=mxfp4 | activations format=mxfp4"}, "CompressedTensorsW4A4Mxfp4", "DecodesMxfp4", None),
}  # fmt: skip
# Of whole numbers a few inputs half-way between two fall otherwise.
BOUNDS = {None: 1e-2, "fp8": 1e-5, "int8": 5e-4, "token": 5e-4}
# A mean divergence of predictions, as a multiple of that of Transformers in bfloat16.
TIMES = 3


def read(jobs, folder):
    """What vLLM makes of directories, by name; the test is skipped where there is none."""
    python = os.environ.get("MODICUM_VLLM")
    if not python:
        pytest.skip("MODICUM_VLLM names no python of an environment with vLLM: see docs/guide/targets.md")
    (folder / "jobs.json").write_text(json.dumps(jobs))
    beside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, str(Path(__file__).parent / "vllm_beside.py"), str(folder / "jobs.json"), str(folder / "results.pt")],
        env=beside, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "results.pt")


def fitted(out, source="demo", **settings):
    settings = {"target": "vllm", "samples": 2, "tokens": LENGTH, "test_samples": 1, "search_time": 0} | settings
    return modicum.fit(source, out=out, **settings)


def predictions(module, tokens):
    """Log-probabilities [sequences, tokens - 1, vocabulary] of a module, in float64."""
    with torch.no_grad():
        return module(torch.tensor(tokens)).logits[:, :-1].double().log_softmax(-1)


def divergence(ours, theirs):
    return float((ours.exp() * (ours - theirs.double())).sum(-1).mean())


def weights_alone(directory):
    """The module of a directory, whose inputs are not rounded whatever its config says."""
    path = directory / "config.json"
    kept = path.read_text()
    config = json.loads(kept)
    for group in config.get("quantization_config", {}).get("config_groups", {}).values():
        group["input_activations"] = None
    path.write_text(json.dumps(config))
    try:
        return loaded(AutoModelForCausalLM, directory)
    finally:
        path.write_text(kept)


def both(module, tokens):
    """Its predictions in float32, and how far those in its own dtype are from them."""
    own = predictions(module, tokens)  # what is packed is decoded by now
    exact = predictions(torch.nn.Module.float(module), tokens)
    return exact, divergence(exact, own)


def by_token(inputs):
    """Inputs under a token's own scale in eight bits: vLLM divides by 127 what compressed-tensors divides by 127.5."""
    scale = inputs.abs().amax(-1, keepdim=True) / 127
    return (inputs / scale).round() * scale


def errors(seen, directory, module, rounding):
    """By layer how far its outputs are from those of the files' numbers in float32, relative to their norm; and without rounding of inputs."""
    held = load_file(directory / "model.safetensors")
    found, unrounded = {}, {}
    for name, layer in seen.items():
        if "inputs" not in layer:
            continue  # the head is called otherwise; predictions have it
        parent, _, last = name.rpartition(".")
        parts = [f"{parent}.{part}" for part in _ROWS["Llama"].fused.get(last, (last,))]
        weight = torch.cat([exact(part, held, module) for part in parts])
        inputs, outputs = (layer[key].float().flatten(0, -2) for key in ("inputs", "outputs"))
        scale = held.get(f"{parts[0]}.input_scale")
        rounded = (
            by_token if rounding == "token" else Rounding(rounding, None if scale is None else scale.float()) if rounding else torch.clone
        )
        found[name], unrounded[name] = (float((each @ weight.T - outputs).norm() / outputs.norm()) for each in (rounded(inputs), inputs))
    return found, unrounded


def exact(part, held, module):
    """A layer's weight in float32: the files' codes under their scales; of packed ones what Transformers makes of them."""
    codes, scale = held.get(f"{part}.weight"), held.get(f"{part}.weight_scale")
    return module.get_submodule(part).weight.float() if codes is None or scale is None else codes.float() * scale.float()


@pytest.fixture(scope="module")
def tokens():
    """Two sequences of the demo's test text."""
    text = from_text(None, open_model("demo").tokenizer, samples=1, tokens=LENGTH, seed=0, batch=2, test_samples=2)
    return text.test[0]["input_ids"].tolist()


@pytest.fixture(scope="module")
def kinds(tmp_path_factory, tokens):
    folder, jobs = tmp_path_factory.mktemp("kinds"), {"as it is": {"directory": str(DEMO), "dtype": "float32"}}
    for place, (kind, (settings, _, kernel, rounding)) in enumerate(KINDS.items()):
        out = folder / str(place)
        fitted(out, **settings)
        jobs[kind] = {"directory": str(out), "dtype": "float32" if rounding else "bfloat16", "stand_in": kernel.startswith("Decodes")}
        if kernel.startswith("Decodes"):
            jobs[f"{kind}, as installed"] = jobs[kind] | {"stand_in": False}
    jobs = {name: job | {"tokens": tokens} for name, job in jobs.items()}
    return jobs, read(jobs, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_makes_what_its_file_stands_for(kinds, kind):
    jobs, made = kinds
    _, scheme, kernel, rounding = KINDS[kind]
    seen, directory = made[kind], Path(jobs[kind]["directory"])
    assert "refused" not in seen, seen.get("refused")
    layers = seen["layers"]
    assert scheme in {layer["scheme"] for layer in layers.values()}
    assert kernel in {layer["kernel"] for layer in layers.values()}
    module = loaded(AutoModelForCausalLM, directory) if rounding else weights_alone(directory)
    ours, own = both(module, jobs[kind]["tokens"])
    found, unrounded = errors(layers, directory, module, rounding)
    bound = BOUNDS[rounding]
    assert max(found.values()) < bound, found
    assert rounding is None or min(unrounded.values()) > 2 * bound, "inputs must be rounded by enough to see it"
    theirs = divergence(ours, seen["logprobs"])
    assert theirs < TIMES * own
    check_page(kind, scheme, kernel, max(found.values()), theirs)


def check_page(kind, scheme, kernel, error, theirs):
    """The guide's row of a kind must name its scheme and kernel, and no smaller deviations than half of these."""
    row = f"| {kind} | `{scheme}` | {'–' if kernel.startswith('Decodes') else f'`{kernel}`'} | {error:.0e} | {max(theirs, 0):.0e} |"
    print(row)
    told = next((line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {kind} |")), None)
    assert told is not None, f"{PAGE.name} must have a row: {row}"
    names, numbers = told.split(" | ")[:3], re.findall(r"\d+e-\d+", told)
    assert names == row.split(" | ")[:3]
    assert error < 2 * float(numbers[0])
    assert theirs < 2 * float(numbers[1])


@pytest.mark.parametrize("kind", [kind for kind, (_, _, kernel, _) in KINDS.items() if kernel.startswith("Decodes")])
def test_what_no_processor_runs_is_refused_for_want_of_a_kernel(kinds, kind):
    refused = kinds[1][f"{kind}, as installed"]["refused"]
    assert re.search("Failed to find a kernel|Forced NVFP4 kernel .* is not supported", refused), refused


def test_a_dense_model_is_computed_alike(kinds):
    jobs, made = kinds
    ours, _ = both(AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32), jobs["as it is"]["tokens"])
    assert abs(divergence(ours, made["as it is"]["logprobs"])) < 1e-8


# Other models and what stands beside them


# What else the smallest models of an architecture take. Heads have 32 numbers, the fewest that vLLM's attention for processors knows.
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SETTINGS = {
    **dict.fromkeys(("Qwen3Moe", "Olmoe"), EXPERTS), "Qwen2Moe": EXPERTS | {"shared_expert_intermediate_size": 64},
    "Mixtral": {"num_local_experts": 4}, "Qwen2": {"tie_word_embeddings": True},
}  # fmt: skip
# Lengths of the beginnings of sequences whose next token is asked for.
ENDS = [8, 16, 24, 32, 40, 48, 56, 63]


@pytest.fixture(scope="module")
def architectures(tmp_path_factory):
    folder, jobs = tmp_path_factory.mktemp("architectures"), {}
    for name in _ROWS:
        model, batches = (
            zoo.language_model(f"{name}ForCausalLM", dtype=torch.bfloat16, **HEADS | SETTINGS.get(name, {})),
            zoo.build("llama")[1],
        )
        tokens = batches[0]["input_ids"].tolist()
        fitted(folder / f"{name}4", model, data=batches, method=ROUND)
        model.save_pretrained(folder / name)
        jobs[name] = {"directory": str(folder / name), "dtype": "float32", "tokens": tokens}
        jobs[f"{name}4"] = {"directory": str(folder / f"{name}4"), "tokens": tokens, "stand_in": bool(_ROWS[name].experts)}
    jobs["experts, as installed"] = jobs["Qwen3Moe4"] | {"stand_in": False}
    return jobs, read(jobs, folder)


@pytest.mark.parametrize("name", sorted(_ROWS))
def test_each_architecture_is_computed_alike(architectures, name):
    jobs, made = architectures
    for case in (name, f"{name}4"):
        assert "refused" not in made[case], made[case]["refused"]
        ours, own = both(loaded(AutoModelForCausalLM, Path(jobs[case]["directory"])), jobs[case]["tokens"])
        theirs = divergence(ours, made[case]["logprobs"][..., : ours.shape[-1]])
        assert theirs < (1e-6 if case == name else TIMES * own + 1e-7), (case, theirs, own)


def test_experts_in_whole_numbers_are_refused_for_want_of_a_kernel(architectures):
    """A processor with tiles has one; the others' experts are laid out by vLLM's method and computed with as dense ones."""
    assert "No WNA16 MoE backend supports the deployment configuration" in architectures[1]["experts, as installed"]["refused"]


@pytest.fixture(scope="module")
def others(tmp_path_factory, tokens):
    folder = tmp_path_factory.mktemp("others")
    fitted(folder / "budget", bpw=3.6)
    fitted(folder / "shallow", method="blocks count=1")
    fitted(folder / "headless", method="nearest bits=4 group=32", keep=["lm_head"])
    fitted(folder / "cache", method=ROUND, kv="fp8")
    fitted(folder / "static", method="float8 | activations format=fp8 scale=static")
    for kind in ("lora", "dora"):
        module, draw = AutoModelForCausalLM.from_pretrained(DEMO), torch.Generator().manual_seed(1)
        with trained(module, f"{kind} rank=4") as learning, torch.no_grad():
            for parameter in learning.parameters():
                parameter.data += 0.03 * torch.randn(parameter.shape, generator=draw).to(parameter)
            delta = learning.delta()
        to_peft(delta, folder / kind, DEMO)
        apply(DEMO, [delta], folder / f"{kind} applied")
    jobs = {name: {"directory": str(folder / name)} for name in ("budget", "shallow", "cache", "static", "lora applied")}
    bases = {"lora": DEMO, "dora": DEMO, "lora on codes": folder / "headless", "lora on a head's codes": folder / "budget"}
    jobs |= {name: {"directory": str(base), "adapter": str(folder / name[:4]), "ends": ENDS} for name, base in bases.items()}
    jobs = {name: job | {"tokens": tokens} for name, job in jobs.items()}
    base, with_it = (load_file(each / "model.safetensors") for each in (DEMO, folder / "lora applied"))
    return jobs, read(jobs, folder) | {"learnt": {name: with_it[name].float() - base[name].float() for name in base}}, tokens


@pytest.mark.parametrize("name", ["budget", "shallow", "lora applied"])
def test_what_a_budget_chose_and_what_is_shallower_are_computed_alike(others, name):
    jobs, made, tokens = others
    ours, own = both(loaded(AutoModelForCausalLM, Path(jobs[name]["directory"])), tokens)
    assert divergence(ours, made[name]["logprobs"]) < TIMES * own


def test_an_adapter_is_what_it_is_once_applied(others):
    jobs, made, tokens = others
    at = torch.tensor(ENDS) - 1
    ours, own = both(loaded(AutoModelForCausalLM, Path(jobs["lora applied"]["directory"])), tokens)
    before = predictions(AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32), tokens)
    assert divergence(ours[:, at], before[:, at]) > 100 * own, "the adapter must change something for this to mean anything"
    assert divergence(ours[:, at], made["lora"]["logprobs"]) < TIMES * own


def test_an_adapter_stands_beside_codes_but_for_a_quantized_head(others):
    """Such a head has no attribute that vLLM's wrapper for adapters asks for, whether or not the adapter changes the head."""
    jobs, made, tokens = others
    at = torch.tensor(ENDS) - 1
    module, delta = loaded(AutoModelForCausalLM, Path(jobs["lora on codes"]["directory"])), made["learnt"]
    own = both(module, tokens)[1]
    for name, change in delta.items():
        module.get_parameter(name).data += change
    ours = predictions(module, tokens)
    assert divergence(ours[:, at], made["lora on codes"]["logprobs"]) < TIMES * own
    assert "'ParallelLMHead' object has no attribute 'weight'" in made["lora on a head's codes"]["refused"]


def test_an_adapter_with_lengths_of_rows_is_refused(others):
    assert "does not yet support DoRA" in others[1]["dora"]["refused"]


def test_keys_and_values_are_rounded_by_our_scales_and_towards_zero(others, monkeypatch):
    """Its kernel for processors takes of two 8-bit floats the one nearer to zero; those for GPUs round, as is judged here."""
    jobs, made, tokens = others
    assert made["cache"]["cache"] == "fp8"
    directory, theirs = Path(jobs["cache"]["directory"]), made["cache"]["logprobs"]
    nearest, own = both(loaded(AutoModelForCausalLM, directory), tokens)
    monkeypatch.setattr(cached, "rounded", towards_zero)
    cut, _ = both(loaded(AutoModelForCausalLM, directory), tokens)
    assert divergence(cut, theirs) < TIMES * own
    assert divergence(nearest, theirs) > 1.5 * divergence(cut, theirs)


def towards_zero(scale, value):
    whole = (value.float() / scale.float()).clamp(-cached.LARGEST, cached.LARGEST)
    code = whole.to(cached.FLOAT8)
    less = (code.view(torch.uint8).short() - (code.float().abs() > whole.abs()).short()).to(torch.uint8)
    return less.view(cached.FLOAT8).to(value.dtype) * scale.to(value.dtype)


def test_one_scale_for_inputs_in_floats_beside_a_scale_for_each_row_fails_on_processors(others):
    """The file is as vLLM's scheme asks for it: it is chosen, and its layers are filled."""
    assert "CompressedTensorsW8A8Fp8" in others[1]["static"]["schemes"]
    assert "narrow() cannot be applied to a 0-dim tensor" in others[1]["static"]["refused"]
