"""Exponents of steps: of columns by what inputs are worth given those after them, of rows by how much the output feels them."""

from __future__ import annotations

import torch

from modicum.forms.coded import WIDEST, on_ladder

# The share of the mean that a row is felt with at the least: gradients are of a few sequences.
LEAST = 1e-2


def falling(curvature: torch.Tensor, larger: torch.Tensor) -> torch.Tensor:
    """Exponents of steps ``∝ 1 / √D`` (columns,): whole octaves alone where codes are ``larger`` than typical ones by so many octaves (columns,)."""
    octaves = -0.5 * curvature.log2()
    found, large = octaves - octaves.min(), octaves.mean() - octaves > larger
    return torch.where(large, (4 * found.round()).to(torch.int16), on_ladder(found)).clamp(max=WIDEST - 1)


def raised_by(felt: torch.Tensor, least: float = LEAST, root: float = 0.25) -> torch.Tensor:
    """Exponents of steps ``∝ felt^-root`` (rows,) for how much the output feels each row, its squared gradient, but ``least`` of the mean.

    To second order ``felt^(-1/2)`` would be best; but rows that are hardly felt would take steps at which they lose all they are, which is no small
    error any more.
    """
    octaves = -root * felt.double().clamp_min(float(felt.mean()) * least + 1e-300).log2()
    return on_ladder(octaves - octaves.median())
