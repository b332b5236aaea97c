#!/usr/bin/env bash
# torch 2.13.0: nn.TransformerEncoder in evaluation mode, with a padding mask, answers differently with and without gradients: the fast path fills
# padded positions with zeros. Whoever records outputs under no_grad and compares them with outputs under autograd sees a difference that no
# weight made. One layer by itself does not do so.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"; "$work/env/bin/pip" install --quiet torch==2.13.0 numpy
"$work/env/bin/python" -W ignore - <<'PY'
import torch

torch.manual_seed(0)
layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
encoder = torch.nn.TransformerEncoder(layer, 2).eval()
x = torch.randn(2, 6, 16)
padded = torch.tensor([[False] * 5 + [True], [False] * 3 + [True] * 3])
slow = encoder(x, src_key_padding_mask=padded)
with torch.no_grad():
    fast = encoder(x, src_key_padding_mask=padded)
    alone = layer.eval()(x, src_key_padding_mask=padded)
print("torch", torch.__version__)
for name, seen in (("with gradients", slow), ("without gradients", fast), ("one layer without gradients", alone)):
    print(f"{name}: largest value at padding {seen[padded].abs().max():.3f}")
print(f"largest difference at real positions {(fast - slow)[~padded].abs().max():.1e}")
assert fast[padded].abs().max() == 0, "the fast path now computes padded positions"
assert slow[padded].abs().max() > 0.1 and alone[padded].abs().max() > 0.1, "padded positions are now zero everywhere"
PY
