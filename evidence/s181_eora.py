"""S181, EoRA: a low-rank repair truncated in the eigenspace of the inputs, against plain SVD of the same error at the same rank."""

from __future__ import annotations

from common import Claim, Setting, main

CLAIM = Claim(
    id="S181",
    system="EoRA",
    claim="For each compressed layer, projects the error into the eigenspace of input activations scaled by root eigenvalues, truncates by "
    "SVD, maps back; the rank-r path lowers perplexity more than plain SVD, without training.",
    metric="log perplexity of plain SVD minus EoRA's, same base, rank and bytes",
    margin=2.0,
    setting=Setting(
        method="gptq bits=2 | eora rank=32",
        baselines=("gptq bits=2 | eora rank=32 whiten=false",),
        beside=(
            "gptq bits=2 | eora rank=8",
            "gptq bits=2 | eora rank=8 whiten=false",
            "gptq bits=2 | eora rank=64",
            "gptq bits=2 | eora rank=64 whiten=false",
        ),
    ),
)

if __name__ == "__main__":
    main(CLAIM)
