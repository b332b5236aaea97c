"""S176, ZeroQuant-FP: four-bit floats under GPTQ against four-bit integers under GPTQ, and what low-rank compensation gives back.

The paper rounds activations to eight bits too; here weights alone are rounded. Scales are those of MXFP4 (powers of two for 32 columns) and of
NVFP4 (E4M3 for 16), integers have 16-bit scales in groups that take as many bytes.
"""

from __future__ import annotations

from common import Claim, Setting, main

CLAIM = Claim(
    id="S176",
    system="ZeroQuant-FP",
    claim="Simulates FP8 activations and FP4 (E2M1) weights under GPTQ, power-of-two scale constraints, and LoRC (SVD of quantization error); "
    "W4A8-FP perplexity is at or below W4A8-INT, and LoRC shrinks the gap.",
    metric="log perplexity of four-bit integers in groups of 32 minus that of NVFP4, both under GPTQ, 4.5 bits per weight",
    margin=2.0,
    setting=Setting(
        method="zeroquant_fp",
        baselines=("gptq bits=4 group=32 symmetric=true",),
        beside=(
            "zeroquant_fp | eora rank=8 whiten=false",
            "zeroquant_fp format=mxfp4",
            "zeroquant_fp format=mxfp4 | eora rank=8 whiten=false",
            "gptq bits=4 group=64 symmetric=true",
        ),
    ),
)

if __name__ == "__main__":
    main(CLAIM)
