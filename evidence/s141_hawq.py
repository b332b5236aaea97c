"""S141, HAWQ: bits ordered by the top eigenvalue of each layer's Hessian, against the same bits everywhere.

The paper takes blocks of ResNet20, orders them by top eigenvalue over number of weights, chooses the levels by hand and fine-tunes in that order.
Here every weight of a language model is a block of its own, the levels along the order are those of least summed eigenvalue times squared change,
and nothing is tuned. Eigenvalues come from six power iterations on 32 tokens, so they are rough.
"""

from __future__ import annotations

from allocation import compare
from common import Claim, Setting, show
from modicum.allocate import ALLOCATORS

CLAIM = Claim(
    id="S141",
    system="HAWQ",
    claim="Per-block top Hessian eigenvalue by power iteration on Hessian-vector products, divided by parameter count, orders bit-widths; mixed "
    "precision must beat uniform bits at equal size.",
    metric="mean KL of three bits everywhere minus HAWQ's, at the same bytes, without fine-tuning",
    margin=2.0,
    setting=Setting(method="hawq", baselines=("uniform",), samples=8, tokens=128, test_samples=16, extra_bytes=0.001),
)

if __name__ == "__main__":
    show(compare(CLAIM, lambda scene, name, limits: ALLOCATORS[name](scene.table, limits), curved=True))
