"""What is written for vLLM, of every kind of scheme and every architecture: each layer that it makes of the files has one scheme, and finds it."""

import pytest
import torch

import modicum
from modicum.export.vllm.architectures import _ROWS, row_of
from modicum.export.vllm.fusion import require_readable
from modicum.testing import zoo

SCHEMES = [
    "nearest bits=4 group=32",
    "nearest bits=8 group=0 | activations",
    "nearest bits=8 group=0",
    "float8",
    "float4",
    "float4 format=mxfp4",
]
MIXED = ["*.layers.1.*: bits=8 group=0", "*.layers.2.*: bits=8"]
_SETTINGS = {
    **dict.fromkeys(("Qwen2Moe", "Qwen3Moe", "Olmoe"), {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64},
}


def written(model, batches, tmp_path, **settings):
    modicum.fit(model, data=batches, out=tmp_path / "out", overwrite=True, **settings)
    return require_readable(tmp_path / "out", row_of(type(model)))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_scheme(scheme, tmp_path):
    model, batches = zoo.build("llama", dtype=torch.bfloat16)
    assert written(model, batches, tmp_path, target="vllm", method=scheme) == 14


@pytest.mark.parametrize("target", ["vllm", "transformers"])
@pytest.mark.parametrize(
    "name", ["qwen3_moe", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "phi3", "opt", "gemma3"))]
)
def test_mixed_widths(name, target, tmp_path):
    model, batches = zoo.build(name, dtype=torch.bfloat16)
    rules = ["*self_attn*: bits=8"] if "moe" in name else MIXED  # all experts have one scheme
    assert written(model, batches, tmp_path, target=target, method=SCHEMES[0], set=rules)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(_ROWS))
def test_each_architecture(name, tmp_path):
    model = zoo.language_model(f"{name}ForCausalLM", dtype=torch.bfloat16, **_SETTINGS.get(name, {}))
    assert written(model, zoo.build("llama")[1], tmp_path, target="vllm", method=SCHEMES[0])
