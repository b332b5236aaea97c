#!/usr/bin/env bash
# compressed-tensors 0.17.1 packs 3-bit codes ten to a word of 32 bits; 0.18.0 and later pack them bit after bit. The format's name, the config and the
# tensors' names stay the same, so a file of the one is read by the other as other codes, without an error. Widths that divide 32 are packed alike.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy transformers==5.24.0
for version in 0.17.1 0.20.1; do
  "$work/env/bin/pip" install --quiet --no-deps --target "$work/$version" "compressed-tensors==$version"
done
"$work/env/bin/pip" install --quiet loguru pydantic psutil
cat >"$work/one.py" <<'PY'
import sys

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

verb, bits, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(num_bits=bits, symmetric=True, strategy="channel"))
compressor = BaseCompressor.get_value_from_registry("pack-quantized")
most = 2 ** (bits - 1)
weight = torch.randint(-most, most, (64, 64), generator=torch.Generator().manual_seed(0)).float()
if verb == "write":
    zero = torch.zeros(64, 1, dtype=torch.int8)
    torch.save(compressor.compress({"weight": weight, "weight_scale": torch.ones(64, 1), "weight_zero_point": zero}, scheme=scheme), path)
else:
    read = compressor.decompress(torch.load(path), scheme=scheme)["weight"].float()
    share = float((read != weight).float().mean())
    print(f"{bits} bits: {share:.0%} of the codes are read otherwise")
    assert (share > 0.5) == bool(32 % bits), "both versions pack alike now"
PY
for bits in 3 4; do
  PYTHONPATH="$work/0.17.1" "$work/env/bin/python" -W ignore "$work/one.py" write "$bits" "$work/packed.pt"
  PYTHONPATH="$work/0.20.1" "$work/env/bin/python" -W ignore "$work/one.py" read "$bits" "$work/packed.pt"
done
