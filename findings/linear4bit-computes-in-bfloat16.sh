#!/usr/bin/env bash
# bitsandbytes 0.50.2 on a processor with AVX512-BF16: the first forward of a Linear4bit in evaluation mode packs its weight anew, rounds its scales to
# bfloat16 and from then on multiplies in bfloat16, whatever the inputs' and the compute dtype. A float32 layer then answers as a bfloat16 one; before
# (in training mode) it answered to seven digits. A layer whose rows are no multiple of 32, or are no whole blocks, fails at that forward.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy bitsandbytes==0.50.2
"$work/env/bin/python" -W ignore - <<'PY'
import json

import bitsandbytes
import torch

if not bitsandbytes.functional.has_avx512bf16():
    print("this processor has no units for bfloat16: nothing to see here")
    raise SystemExit(0)


def layer(rows, columns):
    """A float32 layer in NF4 that computes in float32, inputs, and what its dequantized weight gives."""
    torch.manual_seed(0)
    linear = bitsandbytes.nn.Linear4bit(columns, rows, bias=False, compute_dtype=torch.float32, quant_type="nf4", compress_statistics=False)
    linear.weight.data = torch.randn(rows, columns)
    linear = linear.to("cpu")
    if linear.weight.quant_state is None:
        linear.weight = linear.weight._quantize("cpu")
    inputs = torch.randn(8, columns)
    return linear, inputs, inputs @ bitsandbytes.functional.dequantize_4bit(linear.weight.data, linear.weight.quant_state).T


def apart(rows, columns, training):
    linear, inputs, wanted = layer(rows, columns)
    try:
        with torch.no_grad():
            return float((linear.train(training)(inputs) - wanted).abs().max() / wanted.abs().max())
    except (AssertionError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


seen = {
    "training": apart(64, 128, True), "evaluation": apart(64, 128, False), "48 rows": apart(48, 128, False), "96 columns": apart(64, 96, False),
}  # fmt: skip
print("bitsandbytes", bitsandbytes.__version__, "torch", torch.__version__)
print(json.dumps(seen, indent=1))
assert seen["training"] < 1e-5 < 1e-3 < seen["evaluation"], "it now computes in the layer's own dtype"
assert all(isinstance(seen[name], str) for name in ("48 rows", "96 columns")), "it now takes such shapes"
PY
