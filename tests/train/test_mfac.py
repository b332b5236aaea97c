"""M-FAC's dynamic half: the direction is that of the dense inverse over a sliding window."""

import copy

import pytest
import torch

from modicum.core.errors import SettingError
from modicum.train.mfac import Mfac


def stepped(gradients, **settings):
    """Parameters after each gradient, from zeros, and the optimizer."""
    one, other = torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4))
    optimizer, found = Mfac([one, other], lr=1.0, **settings), []
    for gradient in gradients:
        one.grad, other.grad = gradient[:6].view(2, 3), gradient[6:]
        optimizer.step()
        found.append(torch.cat([one.detach().flatten(), other.detach()]).clone())
    return found, optimizer


def test_directions_are_those_of_the_dense_damped_inverse_of_the_last_gradients():
    gradients = torch.randn(9, 10)
    found, _ = stepped(gradients, window=4, damping=0.1, momentum=0.0)
    at = torch.zeros(10)
    for number, (gradient, after) in enumerate(zip(gradients, found)):
        last = gradients[max(0, number - 3) : number + 1].double()
        least = 0.1 * float(last.square().sum(1).mean())
        dense = last.T @ last / len(last) + least * torch.eye(10, dtype=torch.float64)
        at = at - (least * torch.linalg.solve(dense, gradient.double())).float()
        torch.testing.assert_close(after, at, rtol=1e-4, atol=1e-5)


def test_damped_away_it_is_gradient_descent_and_it_goes_on_from_what_is_kept():
    gradients = torch.randn(6, 10)
    found, optimizer = stepped(gradients, damping=1e9, momentum=0.5)
    plain = torch.nn.Parameter(torch.zeros(10))
    descent = torch.optim.SGD([plain], lr=1.0, momentum=0.5)
    for gradient, after in zip(gradients, found):
        plain.grad = gradient.clone()
        descent.step()
        torch.testing.assert_close(after, plain.detach(), rtol=1e-5, atol=1e-5)
    first, optimizer = stepped(gradients[:3], window=4)
    kept = copy.deepcopy(optimizer.state_dict())
    again = Mfac([torch.nn.Parameter(first[-1][:6].view(2, 3).clone()), torch.nn.Parameter(first[-1][6:].clone())], lr=1.0, window=4)
    again.load_state_dict(kept)
    one, other = again.param_groups[0]["params"]
    one.grad, other.grad = gradients[3][:6].view(2, 3), gradients[3][6:]
    again.step()
    whole, _ = stepped(gradients[:4], window=4)
    torch.testing.assert_close(torch.cat([one.detach().flatten(), other.detach()]), whole[-1])


def test_a_narrow_valley_is_descended_at_a_rate_that_plain_descent_does_not_stand():
    def ended(make):
        weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        optimizer = make([weight])
        for _ in range(100):
            weight.grad = torch.tensor([100.0, 1.0]) * weight.detach()
            optimizer.step()
        return float(weight.detach().abs().max())

    assert ended(lambda found: Mfac(found, lr=0.1, window=4, damping=0.01)) < 0.1
    assert not ended(lambda found: torch.optim.SGD(found, lr=0.1, momentum=0.9)) < 1e3


def test_slips_are_told_in_a_sentence():
    weight = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(SettingError, match="window 1 or more"):
        Mfac([weight], window=0)
    optimizer = Mfac([weight])
    optimizer.step()  # nothing has a gradient: nothing moves
    weight.grad = torch.tensor([float("nan"), 0.0])
    with pytest.raises(SettingError, match="must be finite"):
        optimizer.step()
    weight.grad = torch.zeros(2)
    optimizer.step()
    assert weight.tolist() == [1.0, 1.0]
