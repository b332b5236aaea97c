"""S133, EvoPress: evolution by level switches judged on the real divergence, against uniform and against additive errors.

The paper searches models of billions of weights over 150 generations of up to 128 children; here it is a small model, bits alone, and as few
generations and children as a minute allows. Additive errors are, as in the paper, those of each layer's own output, relative to it, divided by
the dynamic program. The program over our own measured harms, which feel what the model's output feels, is no baseline of the paper; it is
shown beside. The search sees validation sequences, what is compared are test sequences.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from allocation import Scene, compare
from common import Claim, Setting, show
from modicum.allocate import ALLOCATORS
from modicum.allocate.evopress import evopress
from modicum.core.plan import Limits, Picks, Table

GENERATIONS, OFFSPRING, SURVIVORS, SHARES = 9, 12, (4, 2, 1), (1 / 8, 1 / 4, 1.0)
CLAIM = Claim(
    id="S133",
    system="EvoPress",
    claim="Over a database of per-layer levels, evolve with budget-preserving level-switch mutations and multi-step selection on growing "
    "calibration sets (KL fitness); must beat uniform and additive-error allocation.",
    metric="mean KL of the better baseline, uniform or additive errors, minus EvoPress's, at the same bytes",
    margin=2.0,
    setting=Setting(
        method="evopress",
        baselines=("uniform", "layer errors"),
        samples=8,
        tokens=128,
        test_samples=16,
        extra_bytes=0.001,
        beside=("dynamic_program",),
    ),
)


def chosen(scene: Scene, name: str, limits: Limits) -> Picks:
    """A plan within the limits."""
    if name == "layer errors":
        return ALLOCATORS["dynamic_program"](erring(scene), limits)
    if name != "evopress":
        return ALLOCATORS[name](scene.table, limits)
    return evopress(
        scene.table,
        limits,
        scene.validation,
        seed=scene.seed,
        generations=GENERATIONS,
        offspring=OFFSPRING,
        survivors=SURVIVORS,
        shares=SHARES,
    )


def erring(scene: Scene) -> Table:
    """The scene's table with the relative error of each layer's output in the place of harm."""
    with tempfile.TemporaryDirectory() as folder:
        return Scene.measured(CLAIM.setting, scene.seed, Path(folder), harm="error").table


if __name__ == "__main__":
    show(compare(CLAIM, chosen))
