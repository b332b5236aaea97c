"""S164, HAWQ-V2: mean Hessian trace times squared change of the weights, against the order of top eigenvalues and against uniform bits.

The paper estimates traces by Hutchinson's method on image models and fine-tunes what it chose; here traces are those of the Fisher information,
by labels drawn from the model, the point of the Pareto frontier at the budget is found by the integer program, and nothing is tuned.
Top eigenvalues come from six power iterations on 32 tokens, so the baseline made of them is rough.
"""

from __future__ import annotations

from allocation import compare, show
from common import Claim, Setting
from modicum.allocate import ALLOCATORS

CLAIM = Claim(
    id="S164",
    system="HAWQ-V2",
    claim="Each layer's average Hessian trace; Omega = sum of trace times ||Q(W)-W||^2 ranks bit settings; the Pareto frontier under a size budget "
    "picks bits automatically, beating uniform and top-eigenvalue allocation.",
    metric="mean KL of the better baseline, uniform or top eigenvalue, minus HAWQ-V2's, at the same bytes, without fine-tuning",
    margin=2.0,
    setting=Setting(method="hawq_v2", baselines=("uniform", "hawq"), samples=8, tokens=128, test_samples=16, extra_bytes=0.001),
)

if __name__ == "__main__":
    show(compare(CLAIM, lambda scene, name, limits: ALLOCATORS[name](scene.table, limits), curved=True))
