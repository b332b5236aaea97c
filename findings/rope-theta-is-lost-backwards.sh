#!/usr/bin/env bash
# transformers 5.24.0 writes the base of rotary embeddings into `rope_parameters` alone. transformers 4.57.1 does not know that key: it loads the
# same directory without an error, takes the default base, and computes other logits.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
for version in 5.24.0 4.57.1; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/pip" install --quiet torch==2.13.0 numpy "transformers==$version"
done
cat > "$work/show.py" <<'PY'
import sys

import torch
import transformers

transformers.logging.set_verbosity_error()
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
config = model.config
base = config.rope_theta if hasattr(config, "rope_theta") else config.rope_parameters["rope_theta"]
with torch.no_grad():
    logits = model(torch.arange(48)[None]).logits
torch.save((base, logits), sys.argv[2])
print("transformers", transformers.__version__, "rotary base", base)
PY
"$work/5.24.0/bin/python" - "$work/model" <<'PY'
import sys

import torch
import transformers

torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
    rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, initializer_range=0.3,
)  # fmt: skip
transformers.LlamaForCausalLM(config).save_pretrained(sys.argv[1])
PY
"$work/5.24.0/bin/python" "$work/show.py" "$work/model" "$work/new.pt"
"$work/4.57.1/bin/python" "$work/show.py" "$work/model" "$work/old.pt"
"$work/5.24.0/bin/python" - "$work" <<'PY'
import sys

import torch

(new, a), (old, b) = (torch.load(f"{sys.argv[1]}/{name}.pt") for name in ("new", "old"))
print("largest difference of logits", f"{(a - b).abs().max():.3f}")
assert new == 500000.0 and old == 10000.0, "the base now survives"
assert (a - b).abs().max() > 1e-2, "the logits now agree"
PY
