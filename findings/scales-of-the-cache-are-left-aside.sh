#!/usr/bin/env bash
# transformers 5.24.0 with compressed-tensors 0.20.1: a directory whose config asks for keys and values in 8-bit floats (kv_cache_scheme, with k_scale and
# v_scale beside) loads, the scales are reported as unexpected, and nothing is rounded: an attention now calls its cache `cache`, and compressed-tensors
# looks for attentions that call it past_key_values. With scales a thousand times too large, under which all would be lost, logits are those without.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy transformers==5.24.0 compressed-tensors==0.20.1 accelerate
"$work/env/bin/python" -W ignore - "$work" <<'PY'
import inspect
import json
import pathlib
import sys

import safetensors.torch
import torch
import transformers
from compressed_tensors.quantization.lifecycle.initialize import is_cached_attention_module

transformers.logging.set_verbosity_error()
folder = pathlib.Path(sys.argv[1]) / "model"
torch.manual_seed(0)
config = transformers.LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, initializer_range=0.2)
plain = transformers.LlamaForCausalLM(config).eval()
plain.save_pretrained(folder)
tensors = safetensors.torch.load_file(folder / "model.safetensors")
tensors |= {f"model.layers.0.self_attn.{part}_scale": torch.tensor([1e3]) for part in "kv"}
safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
settings = json.loads((folder / "config.json").read_text())
settings["quantization_config"] = {
    "quant_method": "compressed-tensors", "format": "dense", "quantization_status": "compressed", "config_groups": {}, "ignore": [],
    "kv_cache_scheme": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False},
}  # fmt: skip
(folder / "config.json").write_text(json.dumps(settings))
loaded, report = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
ids = torch.arange(8)[None]
with torch.no_grad():
    same = torch.equal(loaded.eval()(ids).logits, plain(ids).logits)
attention = plain.model.layers[0].self_attn
print("transformers", transformers.__version__)
print(json.dumps({
    "an attention is called with": list(inspect.signature(attention.forward).parameters), "is a cached attention": is_cached_attention_module(attention),
    "unexpected": sorted(report["unexpected_keys"]), "logits are those without rounding": same,
}, indent=1))  # fmt: skip
assert same and report["unexpected_keys"] and not is_cached_attention_module(attention), "keys and values are rounded now"
PY
