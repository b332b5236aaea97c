#!/usr/bin/env bash
# transformers 5.24.0: a config whose `quant_method` no quantizer is registered for (the library that wrote the directory was not imported) is not
# refused. A warning is logged, the weights under their other names are ignored, and the model that comes back is random.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"; "$work/env/bin/pip" install --quiet torch==2.13.0 numpy transformers==5.24.0
"$work/env/bin/python" - "$work/model" <<'PY'
import json
import pathlib
import sys

import safetensors.torch
import torch
import transformers

folder = pathlib.Path(sys.argv[1])
transformers.logging.set_verbosity_error()
torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2
)
model = transformers.LlamaForCausalLM(config)
model.save_pretrained(folder)
# What a quantizer of its own kind writes: codes and scales instead of the linear layers' weights.
tensors = {}
for name, tensor in safetensors.torch.load_file(folder / "model.safetensors").items():
    if tensor.dim() == 2 and "proj" in name:
        scale = tensor.abs().amax() / 127
        tensors[name + "_codes"], tensors[name + "_step"] = (tensor / scale).round().to(torch.int8), scale[None]
    else:
        tensors[name] = tensor
safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
settings = json.loads((folder / "config.json").read_text())
settings["quantization_config"] = {"quant_method": "somebodys-own", "bits": 8}
(folder / "config.json").write_text(json.dumps(settings))

torch.manual_seed(1)
one = transformers.AutoModelForCausalLM.from_pretrained(folder)
torch.manual_seed(2)
two = transformers.AutoModelForCausalLM.from_pretrained(folder)
name = "model.layers.0.self_attn.q_proj.weight"
a, b, true = (m.get_parameter(name) for m in (one, two, model))
print("transformers", transformers.__version__)
print("loads without an error; largest difference of one weight to the true one", f"{(a - true).abs().max():.3f}")
print("largest difference of the same weight between two loads", f"{(a - b).abs().max():.3f}")
assert (a - true).abs().max() > 1e-3, "the weights are now right"
assert (a - b).abs().max() > 1e-3, "the weights are no longer drawn at random"
PY
