"""S324, parameterized hypercomplex multiplication: a ViT with a quarter of the numbers in its layers, against the dense one."""

from __future__ import annotations

import torch

from common import Claim, Setting, result, show
from modicum.forms import Dense, Kronecker, Sum
from small import DATA, less, many, shared, vit

NEAR = 0.02

CLAIM = Claim(
    id="S324",
    system="PHM layer",
    claim="PHMLinear builds W as a sum of n Kronecker products A_i with S_i, about 1/n parameters; fixing A reproduces the Hamilton product exactly, "
    "and a small transformer with n=4 trains near the dense accuracy.",
    metric="accuracy of the ViT with n=4 minus that of the dense one, plus 0.02",
    margin=2.0,
    setting=Setting(method="phm n=4", baselines=("dense",), test_samples=0),
)
# Where the product of the basis' elements i and j lies, and with which sign: 1, i, j, k.
PLACE = ((0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0))
SIGN = ((1, 1, 1, 1), (1, -1, 1, -1), (1, -1, -1, 1), (1, 1, -1, -1))


def hamilton() -> bool:
    """Whether the form with fixed rules multiplies quaternions of whole numbers exactly as Hamilton does."""
    chance = torch.Generator().manual_seed(0)
    weights, inputs = (torch.randint(-9, 10, (4,), generator=chance).float() for _ in range(2))
    rules = torch.zeros(4, 4, 4)
    wanted = torch.zeros(4)
    for left in range(4):
        for right in range(4):
            rules[left, PLACE[left][right], right] = SIGN[left][right]
            wanted[PLACE[left][right]] += SIGN[left][right] * weights[left] * inputs[right]
    form = Sum(tuple(Kronecker(Dense(rule), Dense(weight.reshape(1, 1))) for rule, weight in zip(rules, weights)))
    return torch.equal(form.dense() @ inputs, wanted)


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    rows = [many(kept, method, setting.seeds, once=vit, steps=300) for method in (setting.method, *setting.baselines, *setting.beside)]
    gains = [NEAR - gain for gain in less(rows[0], rows[1], "accuracy")]
    conditions = {
        "Hamilton's product exactly": hamilton(),
        "at most 0.4 of the numbers": rows[0]["values"][0] <= 0.4 * rows[1]["values"][0],
    }
    show(result(CLAIM, kept, rows, gains, {"test loss above the dense one's": less(rows[1], rows[0])}, conditions, DATA))


if __name__ == "__main__":
    main()
