"""Progressive gradient flow: entries fade out, and at high sparsity that does better than a straight-through gradient."""

import torch

from modicum.core.parametrization import State, Step
from modicum.restrict import GradientFlow


def test_entries_fade_and_are_gone(problem):
    method, latent = GradientFlow(n=1, m=8, until=0.5), torch.randn(4, 16)
    state, mask = State({"latent": latent}), GradientFlow(n=1, m=8).mask(latent)
    for number, factor in ((0, 1.0), (1, 0.5), (2, 0.0), (4, 0.0)):
        assert torch.equal(method.weight(None, state, Step(number, 4)), torch.where(mask, latent, latent * factor))
    _, weights = problem.learn("gradient_flow n=1 m=8")
    assert all(int((weight.view(-1, 8) != 0).sum(1).max()) <= 1 for weight in weights.values())


def test_the_gradient_of_what_fades_is_true():
    latent = torch.randn(2, 8, requires_grad=True)
    method = GradientFlow(n=1, m=4, until=1.0)
    method.weight(None, State({"latent": latent}), Step(1, 4)).sum().backward()
    assert torch.equal(latent.grad, torch.where(method.mask(latent.detach()), 1.0, 0.75))


def test_it_beats_straight_through_at_one_of_sixteen(problem):
    fading, _ = problem.learn("gradient_flow n=1 m=16", steps=300)
    straight, _ = problem.learn("sr_ste n=1 m=16", steps=300)
    assert fading < 0.7 * straight
