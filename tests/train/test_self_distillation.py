"""Self-distillation: closed forms are what iterating gives, and targets are refined as said."""

import pytest
import torch

from modicum.core.errors import SettingError
from modicum.train.self_distillation import best_weight, calibration_error, distilled, refined, share_of


def problem():
    draw = torch.Generator().manual_seed(0)
    x, new = (torch.randn(rows, 2, generator=draw, dtype=torch.float64) for rows in (30, 40))
    kernel = lambda a, b: torch.exp(-torch.cdist(a, b).square())
    y, wanted = (each.sin().sum(1) for each in (x, new))
    return kernel(x, x), kernel(new, x), y + 0.5 * torch.randn(30, generator=draw, dtype=torch.float64), wanted


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_closed_form_is_what_iterating_gives(weight):
    kernel, _, y, _ = problem()
    smooth = kernel @ torch.linalg.inv(kernel + 0.3 * torch.eye(30, dtype=torch.float64))
    fit = smooth @ y
    for steps in range(6):
        torch.testing.assert_close(distilled(kernel, y, 0.3, weight, steps), fit, rtol=1e-9, atol=1e-9)
        fit = smooth @ (weight * y + (1 - weight) * fit)
    if weight:
        torch.testing.assert_close(
            distilled(kernel, y, 0.3, weight, 10_000), distilled(kernel, y, 0.3 / weight, 1.0, 0), rtol=1e-9, atol=1e-9
        )


def test_the_best_weight_is_that_of_a_grid():
    kernel, across, y, wanted = problem()
    inverse = torch.linalg.inv(kernel + 0.3 * torch.eye(30, dtype=torch.float64))
    predict = lambda targets: across @ inverse @ targets
    fit = kernel @ inverse @ y
    found = best_weight(predict(y), predict(fit), wanted)
    grid = torch.linspace(-2, 3, 5001, dtype=torch.float64)
    losses = torch.stack([(predict(a * y + (1 - a) * fit) - wanted).square().sum() for a in grid])
    assert abs(found - float(grid[losses.argmin()])) <= 1e-3


def test_targets_are_mixed_with_what_was_said():
    past = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]])
    assert torch.allclose(refined(torch.tensor([0, 2]), past, 0.5), torch.tensor([[0.75, 0.25, 0.0], [0.05, 0.1, 0.85]]))
    assert share_of(50, 100) == 0.4 and share_of(500, 100) == 0.8
    with pytest.raises(SettingError, match=r"share: must be between 0 and 1, is 2\."):
        refined(torch.tensor([0]), past[:1], 2)


def test_calibration_is_how_far_confidence_and_accuracy_are_apart():
    probabilities = torch.tensor([[0.85, 0.15]] * 4)
    assert calibration_error(probabilities, torch.tensor([0, 0, 1, 1])) == pytest.approx(0.35)
