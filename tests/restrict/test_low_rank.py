"""Low-rank training: the weight is the product, begins as the truncation of one that exists, and multiplies less."""

import torch

from modicum.core.parametrization import Start, State, Step
from modicum.restrict import LowRank


def test_it_begins_as_the_truncated_decomposition():
    weight = torch.randn(12, 8)
    state = LowRank(rank=3).begin(Start("w", (12, 8), weight, torch.Generator(), 0))
    u, s, v = torch.linalg.svd(weight)
    torch.testing.assert_close(LowRank(rank=3).weight(None, state, Step()), u[:, :3] * s[:3] @ v[:3], rtol=1e-4, atol=1e-5)
    assert LowRank(rank=8).begin(Start("w", (12, 8), weight, torch.Generator(), 0))["left"].shape == (12, 8)


def test_from_nothing_it_has_the_size_of_a_layers_weights():
    state = LowRank(rank=16).begin(Start("w", (256, 128), None, torch.Generator().manual_seed(0), 0))
    made = LowRank(rank=16).weight(None, State(state.trained), Step())
    assert abs(float(made.std()) * (3 * 128) ** 0.5 - 1) < 0.1


def test_a_low_rank_problem_is_learnt_near_its_rank(problem):
    enough, _ = problem.learn("low_rank rank=6", steps=300)
    dense, _ = problem.learn("dense", steps=300)
    assert enough < dense + 0.05
