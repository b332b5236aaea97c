"""Exponents of steps: what they fall with, and where they end."""

import torch

from modicum.forms.coded import WIDEST, steps
from modicum.numerics.exponents import falling, raised_by


def test_steps_of_rows_fall_with_the_fourth_root_of_what_the_output_feels():
    felt = torch.logspace(0, 4, 33)
    aim = -0.25 * felt.log2()
    off = steps(raised_by(felt, least=0.0), 1.0).log2() - (aim - aim.median())
    assert float(off.abs().max()) <= 0.5 * 0.585 + 1e-6  # half of the widest rung of the ladder
    assert raised_by(torch.tensor([0.0, 1.0, 1.0]))[0] == raised_by(torch.tensor([0.01 * 2 / 3, 1.0, 1.0]))[0]


def test_steps_of_columns_fall_with_the_root_of_what_they_are_worth():
    curvature = torch.tensor([16.0, 4.0, 1.0])
    assert torch.equal(steps(falling(curvature, torch.full((3,), 99.0)), 1.0), torch.tensor([1.0, 2.0, 4.0]))
    # Of columns larger than typical ones whole octaves alone; none is beyond what a file says.
    assert set((falling(torch.logspace(0, 2, 30), torch.full((30,), -99.0)) % 4).tolist()) == {0}
    assert int(falling(torch.tensor([1e30, 1e-30]), torch.full((2,), 99.0)).max()) == WIDEST - 1
