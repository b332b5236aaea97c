"""S025, integer programming half of AdaQuant: bits by an integer program over layer-wise losses, against the same bits everywhere.

The paper learns each layer's weights and steps on a calibration set, then divides bits by an integer program over the layers' losses, then
tunes batch normalisation. Here the program alone is shown: weights are rounded by GPTQ (the embedding without data), the loss of a
layer is its predicted divergence, activations stay as they are, and there is no normalisation to tune.
"""

from __future__ import annotations

from allocation import compare
from common import Claim, Setting, show
from modicum.allocate import ALLOCATORS

CLAIM = Claim(
    id="S025",
    system="AdaQuant, its integer program",
    claim="Solve an integer program for bit-widths over layer-wise losses; must beat the same bits in every layer at equal size.",
    metric="mean KL of three bits everywhere minus the integer program's, at the same bytes, without AdaQuant's own optimisation of layers",
    margin=2.0,
    setting=Setting(method="integer_program", baselines=("uniform",), samples=8, tokens=128, test_samples=16, extra_bytes=0.001),
)

if __name__ == "__main__":
    show(compare(CLAIM, lambda scene, name, limits: ALLOCATORS[name](scene.table, limits)))
