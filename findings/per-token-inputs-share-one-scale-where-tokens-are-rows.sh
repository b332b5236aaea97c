#!/usr/bin/env bash
# compressed-tensors 0.20.1: inputs quantized dynamically "per token" have a scale per token where they have three axes (batch, tokens, columns).
# The same rows with two axes (tokens, columns), as models give them that flatten the batch or route tokens to experts, share a single scale:
# one token that reaches far then takes the digits of all others. With four axes a scale is shared by all that follows the first two.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy transformers==5.24.0 compressed-tensors==0.20.1
"$work/env/bin/python" -W ignore - <<'PY'
import importlib.metadata
import json

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme, QuantizationStatus, apply_quantization_config

INPUTS = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="token", dynamic=True)
WEIGHTS = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="channel")


def quantized():
    """One linear under the library's own scheme of eight bits times eight bits, its weight the identity, so that it gives its inputs as rounded."""
    model = torch.nn.Sequential(torch.nn.Linear(16, 16, bias=False)).eval()
    model[0].weight.data = torch.eye(16)
    scheme = QuantizationScheme(targets=["Linear"], weights=WEIGHTS, input_activations=INPUTS)
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": scheme}, quantization_status=QuantizationStatus.FROZEN))
    model[0].weight_scale.data.fill_(1 / 127)
    return model


torch.manual_seed(0)
rows = torch.randn(8, 16)
rows[0] *= 100  # one token that reaches far
model = quantized()
with torch.no_grad():
    shapes = {"(1, 8, 16)": rows[None], "(8, 16)": rows, "(1, 1, 8, 16)": rows[None, None]}
    lost = {shape: float((model(value).view(8, 16)[1:] - rows[1:]).norm() / rows[1:].norm()) for shape, value in shapes.items()}
print("compressed-tensors", importlib.metadata.version("compressed-tensors"))
print("relative error of the other seven tokens:", json.dumps(lost))
assert lost["(1, 8, 16)"] < 0.01
assert lost["(8, 16)"] > 0.3 and lost["(1, 1, 8, 16)"] > 0.3, "rows of two or four axes now have a scale each"
PY
