"""Add a method of one's own, in one short class outside the package, and fit the demo model with it.

python docs/gallery/01_add_a_method.py
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

import modicum
from modicum.core.settings import param
from modicum.core.unit import Stats
from modicum.forms import Form
from modicum.numerics.grid import Grid
from modicum.quantize._family import Quantizer

# Few sequences, so that the script takes seconds: the method itself needs no data. What is broken is shown too.
JUDGED = {"samples": 4, "test_samples": 8, "allow_broken": True}


# The family has the loop, the settings `bits`, `group` and `symmetric`, and the form with its exact bytes. What is left to say is which
# codes a weight gets: here those of the nearest level, on a grid that gives up the few weights far from the row's mean.
@modicum.register
@dataclass(frozen=True, kw_only=True)
class Clipped(Quantizer):
    """Round to the nearest level of a range that leaves out what lies far from the rest of its row."""

    reach: float = param(2.0, "standard deviations of the row that the grid covers", between=(0.1, 10.0))

    def quantize(self, weight: torch.Tensor, grid: Grid, stats: Stats, dtype: torch.dtype) -> Form:
        """Fit the grid to the clipped row, then round the row itself."""
        far = self.reach * weight.std(1, keepdim=True)
        return grid.encode(weight, *grid.fit(weight.clamp(-far, far), dtype))


def main() -> None:
    """Fit the demo with nearest rounding and with the new method at the same bytes, then let a budget choose among the new one's bits."""
    print(f"{'asked for':<45} {'bytes':>9} {'KL':>8} {'perplexity':>11}")
    for method in ("nearest bits=2", "clipped bits=2", "clipped bits=2 reach=1.7"):
        show(method, modicum.fit("demo", method=method, **JUDGED))
    show(
        "4.5 bpw of clipped bits=2, 4 or 8",
        modicum.fit("demo", bpw=4.5, menu=[f"clipped bits={bits}" for bits in (2, 4, 8)], search_time=5, **JUDGED),
    )


def show(what: str, result: modicum.Result) -> None:
    """Print one row: the bytes of the files, and how far the model in them is from the original."""
    size, quality = result.receipt["bytes"]["actual"], result.receipt["quality"]
    print(f"{what:<45} {size:>9} {quality['mean']:>8.4f} {quality['perplexity']:>11.3f}")


if __name__ == "__main__":
    main()
