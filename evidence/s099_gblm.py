"""S099, GBLM-Pruner: gradient norms beside input norms, at half and at three tenths of the weights.

Gradients are taken of each of 32 calibration windows; embedding and head, which are one table, stay as they are.
"""

from __future__ import annotations

from common import Claim, Setting
from pruning import main

CLAIM = Claim(
    id="S099",
    system="GBLM-Pruner",
    claim="Score = |W|*(activation norm + alpha * norm of per-sample-normalized gradients) on a few calibration texts, prune per output row with no "
    "weight update; at 50% a small LM's perplexity must beat magnitude and match or beat Wanda.",
    metric="log perplexity of the better of Wanda and magnitude per row minus GBLM-Pruner's, half of the weights of each layer kept, same bytes",
    margin=2.0,
    setting=Setting(
        method="gblm keep=0.5",
        baselines=("wanda keep=0.5", "magnitude keep=0.5 per_row=true"),
        beside=("gblm keep=0.3", "wanda keep=0.3", "sparsegpt keep=0.5"),
    ),
)

if __name__ == "__main__":
    main(CLAIM, gradients=32)
