"""S417, LIAR: after a criterion has removed heads and channels, what remains interpolates what went, and nothing is trained."""

from __future__ import annotations

from common import Claim, Setting
from pruning import main

CLAIM = Claim(
    id="S417",
    system="LIAR",
    claim="After any structured criterion removes channels, solve for the linear interpolation of removed activations from kept ones on "
    "calibration data and fold it into kept weights; layer error and perplexity drop without backpropagation.",
    metric="log perplexity of plain removal minus that with interpolation, the same groups gone from every layer, same bytes",
    margin=2.0,
    setting=Setting(
        method="liar keep=0.75",
        baselines=("liar keep=0.75 interpolate=false",),
        beside=("liar keep=0.75 criterion=magnitude", "liar keep=0.75 criterion=magnitude interpolate=false"),
    ),
)

if __name__ == "__main__":
    main(CLAIM)
