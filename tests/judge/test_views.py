"""Views: norms, angles and margins of cases that can be drawn on paper."""

import pytest
import torch

from modicum.judge.views import flipped, view


def test_norms_angles_and_margins_are_those_of_a_drawing():
    features = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    found = view(features, torch.eye(2), None, torch.tensor([0, 0, 0]))
    assert found.norm.tolist() == pytest.approx([3, 2**0.5, 2]) and found.angle.tolist() == pytest.approx([0, 45, 90], abs=1e-2)
    assert found.margin.tolist() == pytest.approx([3 / 2**0.5, 0, -(2**0.5)]) and found.chosen.tolist()[::2] == [0, 1]
    twice = view(features, 2 * torch.eye(2), torch.zeros(2), torch.tensor([0, 0, 0]))
    assert torch.allclose(found.margin, twice.margin), "distances do not depend on the weights' scale"


def test_what_flips_is_listed():
    before, after, labels = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 2, 1, 3]), torch.tensor([0, 1, 1, 2])
    assert flipped(before, after, labels) == {"wrong": [1], "right": [2]}
