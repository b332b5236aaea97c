"""S398, M-FAC, its static half: pruning by an inverse of the empirical Fisher information that is never made, against magnitudes.

That products and diagonal equal those of the dense damped inverse is a test (``tests/prune/test_mfac.py``); here the gradients of 32 windows prune
half of the weights. The dynamic half, which preconditions training, is not built.
"""

from __future__ import annotations

from common import Claim, Setting
from pruning import main

CLAIM = Claim(
    id="S398",
    system="M-FAC, static",
    claim="Inverse empirical-Fisher products and diagonal from m stored gradients match the dense damped inverse and drive OBS pruning beyond "
    "magnitude.",
    metric="log perplexity of magnitude pruning minus M-FAC's from the gradients of 32 windows, half of the weights of each layer kept, same bytes",
    margin=2.0,
    setting=Setting(
        method="mfac keep=0.5",
        baselines=("magnitude keep=0.5",),
        beside=("mfac keep=0.5 update=false", "mfac keep=0.3", "magnitude keep=0.3"),
    ),
)

if __name__ == "__main__":
    main(CLAIM, gradients=32)
