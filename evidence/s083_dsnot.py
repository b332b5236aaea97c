"""S083, DSnoT: a mask mended by exchanging weights, against the mask it starts from, at the sparsities the paper names."""

from __future__ import annotations

from common import Claim, Setting, main

CLAIM = Claim(
    id="S083",
    system="DSnoT",
    claim="From a Wanda or magnitude mask on a small LM, per row grow the weight with largest expected error reduction (mean over variance) and "
    "prune a low-score one, iterating without gradients; sparsity constant, perplexity falls at 60-70%.",
    metric="log perplexity of Wanda's mask minus that of DSnoT's from it, 30 % of the weights kept, same bytes",
    margin=2.0,
    setting=Setting(
        method="dsnot keep=0.3",
        baselines=("wanda keep=0.3",),
        beside=(
            "dsnot keep=0.4",
            "wanda keep=0.4",
            "dsnot keep=0.3 start=magnitude",
            "magnitude keep=0.3 per_row=true",
            "dsnot keep=0.3 exchanges=0.2",
        ),
    ),
)

if __name__ == "__main__":
    main(CLAIM)
