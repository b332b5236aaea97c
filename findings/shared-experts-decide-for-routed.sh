#!/usr/bin/env bash
# transformers 5.24.0 with compressed-tensors 0.20.1: of a mixture, routed experts are decoded with the first group that has an `re:` target which
# contains the word "experts". A group for `mlp.shared_experts` that stands before theirs is taken for them: 4-bit experts are read as
# 8-bit ones, and loading ends in an error on mismatched sizes that names neither group. With the groups in the other order it is exact.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy transformers==5.24.0 compressed-tensors==0.20.1 accelerate
"$work/env/bin/python" -W ignore - "$work" <<'PY'
import json
import pathlib
import sys

import safetensors.torch
import torch
import transformers
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
config = transformers.DeepseekV3Config(
    vocab_size=64, hidden_size=64, intermediate_size=64, moe_intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=1, q_lora_rank=None,
    kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16, n_shared_experts=1, initializer_range=0.2,
)  # fmt: skip
work = pathlib.Path(sys.argv[1])
transformers.DeepseekV3ForCausalLM(config).save_pretrained(work / "dense")
settings = json.loads((work / "dense" / "config.json").read_text())
tensors, rounded = {}, {}
for name, weight in safetensors.torch.load_file(work / "dense" / "model.safetensors").items():
    rounded[name] = weight
    if "experts" not in name:
        tensors[name] = weight
        continue
    bits = 8 if "shared_experts" in name else 4
    scale = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    codes = (weight / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    rounded[name] = codes * scale
    tensors[name + "_packed"] = pack_to_int32(codes.to(torch.int8), bits)
    tensors[name + "_scale"], tensors[name + "_shape"] = scale, torch.tensor(weight.shape)
safetensors.torch.save_file(rounded, work / "dense" / "model.safetensors", {"format": "pt"})
x = torch.arange(16)[None]
true = transformers.AutoModelForCausalLM.from_pretrained(work / "dense")(x).logits


def group(bits, part):
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    return {"targets": [rf"re:.*\.{part}\..*_proj$"], "weights": weights, "format": "pack-quantized"}


def load(*groups):
    """Difference of logits of the directory with its groups in this order, or the error that loading ends in."""
    folder = work / "packed"
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    found = {f"group_{i}": g for i, g in enumerate(groups)}
    quantization = {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed", "ignore": []}
    (folder / "config.json").write_text(json.dumps({**settings, "quantization_config": {**quantization, "config_groups": found}}))
    try:
        return float((transformers.AutoModelForCausalLM.from_pretrained(folder)(x).logits - true).abs().max())
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"


shared, routed = group(8, r"shared_experts"), group(4, r"experts\.\d+")
first, second = load(routed, shared), load(shared, routed)
print("transformers", transformers.__version__)
print("routed experts' group first:", first)
print("shared experts' group first:", second)
assert isinstance(first, float) and first < 1e-3
assert isinstance(second, str) or second > 0.1, "the order of groups no longer matters"
PY
