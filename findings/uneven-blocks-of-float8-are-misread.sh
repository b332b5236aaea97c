#!/usr/bin/env bash
# A checkpoint of 8-bit floats has one scale for each block of 128 x 128 weights; where 128 does not divide the rows, the last block is smaller, as
# vLLM and DeepSeek's own code have it. Transformers 5.24.0 divides the rows by the number of scales instead: of 192 rows it takes two blocks of 96
# in the place of 128 and 64. The model loads without a word, and rows 96 to 127 have the other block's scale. (Where scales do not divide the rows it
# refuses the checkpoint.)
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy transformers==5.24.0 accelerate==1.15.0
"$work/env/bin/python" -W ignore - "$work" <<'PY'
import importlib.metadata
import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

BLOCK = 128
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=256, hidden_size=128, intermediate_size=192, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4, dtype="bfloat16",
)  # fmt: skip
model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
model.model.layers[0].mlp.gate_proj.weight.data[:BLOCK] *= 8  # so that the two scales differ
folder = Path(sys.argv[1]) / "model"
model.save_pretrained(folder)

stored, dense = {}, {}
for name, value in load_file(folder / "model.safetensors").items():
    stored[name] = value
    if not name.endswith("_proj.weight"):
        continue
    rows, columns = (math.ceil(size / BLOCK) for size in value.shape)
    scales, codes, meant = torch.empty(rows, columns), torch.empty_like(value, dtype=torch.float8_e4m3fn), value.float()
    for row in range(rows):
        for column in range(columns):
            place = slice(row * BLOCK, (row + 1) * BLOCK), slice(column * BLOCK, (column + 1) * BLOCK)
            scales[row, column] = meant[place].abs().max() / 448
            codes[place] = (meant[place] / scales[row, column]).to(codes.dtype)
            meant[place] = codes[place].float() * scales[row, column]
    stored |= {name: codes, f"{name}_scale_inv": scales}
    dense[name] = meant.to(torch.bfloat16)
save_file(stored, folder / "model.safetensors", {"format": "pt"})
body = json.loads((folder / "config.json").read_text())
said = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "modules_to_not_convert": ["lm_head"]}
(folder / "config.json").write_text(json.dumps(body | {"quantization_config": said}))

loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
held = dict(loaded.named_parameters())
gaps = {name: float((held[name].float() - value.float()).norm() / value.float().norm()) for name, value in dense.items()}
for package in ("transformers", "accelerate"):
    print(package, importlib.metadata.version(package))
print(json.dumps({name: round(gap, 3) for name, gap in gaps.items()}))
uneven = {name for name, value in dense.items() if any(size % BLOCK for size in value.shape)}
assert uneven and all((gap > 1e-3) == (name in uneven) for name, gap in gaps.items()), "blocks at the end of rows are now read as they are"
PY
