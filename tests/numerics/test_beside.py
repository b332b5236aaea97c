"""A thin product beside a whole one is the sum of both, and so are its gradients."""

import pytest
import torch

from modicum.numerics.beside import beside


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_values_and_gradients_are_those_of_two_products(shape, dtype):
    draw = torch.Generator().manual_seed(0)
    x, weight, left, right = (torch.randn(size, generator=draw, dtype=torch.float64).to(dtype) for size in (shape, (5, 6), (5, 2), (2, 6)))
    leaves, found = [each.requires_grad_() for each in (x, left, right)], []
    for made in (beside(x, weight, left, right), x @ weight.T + (x @ right.T) @ left.T, x @ weight.T + beside(x, None, left, right)):
        found.append((made.detach(), *torch.autograd.grad(made.square().sum(), leaves)))
    close = 1e-12 if dtype == torch.float64 else 0.05
    for one, other, third in zip(*found):
        assert one.shape == other.shape == third.shape and one.dtype == dtype
        torch.testing.assert_close(third, other, rtol=close, atol=close * float(other.abs().max()))
        torch.testing.assert_close(one, other, rtol=close, atol=close * float(other.abs().max()))


def test_gradients_have_gradients_and_what_nobody_asks_for_is_not_made():
    x, weight = torch.randn(3, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    left, right = torch.randn(5, 2, dtype=torch.float64, requires_grad=True), torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda a, b: beside(x, weight, a, b), (left, right))
    assert torch.autograd.gradgradcheck(lambda a: beside(a, weight, left.detach(), right.detach()), (x.requires_grad_(),))
    assert beside(x.detach(), weight, left.detach(), right.detach()).grad_fn is None
