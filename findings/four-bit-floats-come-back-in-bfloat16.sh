#!/usr/bin/env bash
# transformers 5.24.0 with compressed-tensors 0.20.1: a directory in NVFP4 loads whatever its dtype, and weights are decoded on the first forward, into
# bfloat16. So a bfloat16 model runs, and its float16 and float32 twins, which load without a word, fail at that forward: a linear's input and
# its weight have different dtypes. Integers of four bits, in the same place, come back in the model's own dtype.
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
from compressed_tensors.compressors.nvfp4 import NVFP4PackedCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

transformers.logging.set_verbosity_error()
WEIGHTS = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"}
SCHEME = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**WEIGHTS))


def written(folder, dtype):
    """A tiny decoder in ``dtype`` whose linears the library's own compressor packs."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, initializer_range=0.2
    )
    transformers.LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    tensors = {}
    for name, weight in safetensors.torch.load_file(folder / "model.safetensors").items():
        if "proj" not in name:
            tensors[name] = weight
            continue
        scale = (weight.float().view(len(weight), -1, 16).abs().amax(2) / 6 * 256).to(torch.float8_e4m3fn).float()
        given = {"weight": weight.float(), "weight_scale": scale, "weight_global_scale": torch.tensor([256.0])}
        packed = NVFP4PackedCompressor.compress(given, SCHEME)
        tensors |= {name.removesuffix("weight") + part: value.contiguous() for part, value in packed.items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "quantization_status": "compressed", "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS, "format": "nvfp4-pack-quantized"}},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def ran(dtype):
    """What one forward gives, or the error it ends in."""
    model = transformers.AutoModelForCausalLM.from_pretrained(written(pathlib.Path(sys.argv[1]) / str(dtype), dtype), dtype="auto")
    try:
        with torch.no_grad():
            return str(model(torch.arange(8)[None]).logits.dtype)
    except RuntimeError as error:
        return str(error)


seen = {str(dtype): ran(dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32)}
print("transformers", transformers.__version__)
print(json.dumps(seen, indent=1))
assert seen["torch.bfloat16"] == "torch.bfloat16"
assert all("same dtype" in seen[name] for name in ("torch.float16", "torch.float32")), "four-bit floats now keep the model's dtype"
PY
