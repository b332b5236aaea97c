"""What a loss is called."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# Nats per token up to which a loss is called by a name: the demo's linears lose 0.005 to 0.012 at 4 bits, 0.02 to 0.06 at 3, 0.12 to 0.37 at 2.
# 0.01 is a hundredth more perplexity, which no benchmark of a few thousand questions can tell from chance; at 0.5 it is 1.6 times the original's.
DEGREES = ((0.01, "near-lossless"), (0.1, "small"), (0.5, "large"))
# Relative squared errors of outputs that are no logits: cosines with the original's of 0.9995, 0.995 and 0.95.
ERRORS = ((1e-3, "near-lossless"), (1e-2, "small"), (1e-1, "large"))
BROKEN = "broken"


def degree(quality: Mapping[str, Any]) -> str:
    """What was lost: near-lossless, small, large or broken; by the divergence, and by what perplexity rose to where that is more."""
    logits = "KL" in quality["metric"]
    lost, degrees = quality["mean"], DEGREES if logits else ERRORS
    if "perplexity_original" in quality:
        lost = max(lost, math.log(max(quality["perplexity"], 1e-300) / quality["perplexity_original"]))
    return next((name for most, name in degrees if lost < most), BROKEN)


def nearly_none(metric: str) -> float:
    """The mean divergence below which a loss is near-lossless, in the unit of its ``metric``."""
    return (DEGREES if "KL" in metric else ERRORS)[0][0]
