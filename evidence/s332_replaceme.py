"""S332, ReplaceMe: a linear stand-in for a span of blocks, folded into the projection before it, against dropping the same span."""

from __future__ import annotations

from common import Claim, Setting, main

CLAIM = Claim(
    id="S332",
    system="ReplaceMe",
    claim="Pick the contiguous block span with least cosine change, solve least squares on calibration activations for one linear map "
    "replacing it, fold that into the previous down_proj; perplexity beats plain dropping with zero added parameters.",
    metric="log perplexity of dropping the span minus ReplaceMe's, same span and bytes",
    margin=2.0,
    setting=Setting(method="replaceme count=2", baselines=("blocks count=2",), seeds=(0, 1, 2, 3)),
)

if __name__ == "__main__":
    main(CLAIM)
