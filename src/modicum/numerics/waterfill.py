"""What the best code of any kind needs: reverse water-filling, the rate and distortion of Gaussian weights under the error that inputs measure.

A weight's row of variance ``v``, in the eigenvectors of the inputs' second moment, is numbers of variances ``v λ``. At a water level θ those above it
take ``½ log2(v λ / θ)`` bits each and are left with an error of θ, those below take none and are left with all they are.
"""

from __future__ import annotations

import math

import torch

# Most steps in which the water level rises; mostly it takes less than ten.
_STEPS = 100


def least_bits(spectrum: torch.Tensor, variances: torch.Tensor, error: float) -> float:
    """Bits per weight that rows of these ``variances`` (rows,) take at the least for an ``error`` in all, under a ``spectrum`` (columns,) of inputs.

    The error is ``tr(E H Eᵀ)`` of the weight error E (rows, columns) with the inputs' second moment H, whose eigenvalues the spectrum is. Zero where
    the error is no less than that of leaving all weights out, infinite where it is zero.

    *Needs and cost:* rows · log columns operations for each of some ten water levels.

    *Reduces to:* ``½ log2(variance / error per weight)`` where all weights and inputs are alike.

    *Source:* Cover and Thomas, Elements of Information Theory, section 10.3.3.
    """
    order = spectrum.double().clamp_min(0).sort().values
    sums = torch.nn.functional.pad(order.cumsum(0), (1, 0))
    logs = torch.nn.functional.pad(order.clamp_min(1e-300).log2().flip(0).cumsum(0), (1, 0))
    variances = variances.double()[variances > 0]
    if not len(variances) or not error < float(variances.sum() * sums[-1]):
        return 0.0
    if error <= 0:
        return math.inf
    # The error left is concave in the level, and of straight lines: Newton's steps rise to where it is the error, and end there.
    level, under = error / (len(variances) * len(order)), torch.zeros(len(variances), dtype=torch.int64)
    for _ in range(_STEPS):
        before, under = under, torch.searchsorted(order, level / variances)  # how many directions of each row are under water
        left = len(variances) * len(order) - int(under.sum())
        if torch.equal(before, under) or not left:
            break
        level = max(level, (error - float((variances * sums[under]).sum())) / left)
    above = len(order) - under
    bits = 0.5 * float((logs[above] + above * (variances.log2() - math.log2(level))).sum())
    return bits / (len(variances) * len(order))
