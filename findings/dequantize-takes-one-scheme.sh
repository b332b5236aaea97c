#!/usr/bin/env bash
# transformers 5.24.0 with compressed-tensors 0.20.1: a directory with two groups (attention in 4 bits, feed-forward in 8) loads exactly when loaded
# plainly. With the documented CompressedTensorsConfig(dequantize=True) every layer is decoded by the first group's scheme: the other
# group's layers come out wrong, and nothing says so.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy transformers==5.24.0 compressed-tensors==0.20.1 accelerate
"$work/env/bin/python" -W ignore - "$work/model" <<'PY'
import json
import pathlib
import sys

import safetensors.torch
import torch
import transformers
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

folder = pathlib.Path(sys.argv[1])
transformers.logging.set_verbosity_error()
torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, initializer_range=0.2
)
transformers.LlamaForCausalLM(config).save_pretrained(folder)
tensors, right = {}, {}
for name, weight in safetensors.torch.load_file(folder / "model.safetensors").items():
    if "proj" not in name:
        tensors[name] = weight
        continue
    bits = 4 if "self_attn" in name else 8
    scale = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    codes = (weight / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    right[name] = codes * scale
    tensors[name + "_packed"] = pack_to_int32(codes.to(torch.int8), bits)
    tensors[name + "_scale"], tensors[name + "_shape"] = scale, torch.tensor(weight.shape)
safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def group(bits, part):
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    return {"targets": [rf"re:.*\.{part}\..*_proj$"], "weights": weights, "format": "pack-quantized"}


settings = json.loads((folder / "config.json").read_text())
settings["quantization_config"] = {
    "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
    "config_groups": {"group_0": group(4, "self_attn"), "group_1": group(8, "mlp")}, "ignore": ["lm_head"],
}  # fmt: skip
(folder / "config.json").write_text(json.dumps(settings))


def error(model, part):
    """Largest relative error of the weights of one part, after a first forward (plain loading decodes there)."""
    model(torch.arange(8)[None])
    return max(float((model.get_parameter(n) - w).norm() / w.norm()) for n, w in right.items() if part in n)


plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
dense = transformers.AutoModelForCausalLM.from_pretrained(
    folder, quantization_config=transformers.CompressedTensorsConfig(dequantize=True)
)
seen = {way: {part: error(m, part) for part in ("self_attn", "mlp")} for way, m in (("plain", plain), ("dequantize", dense))}
print("transformers", transformers.__version__)
print("relative error of weights", json.dumps(seen))
assert max(seen["plain"].values()) < 1e-3 and seen["dequantize"]["self_attn"] < 1e-3
assert seen["dequantize"]["mlp"] > 0.1, "both groups are now decoded by their own scheme"
PY
