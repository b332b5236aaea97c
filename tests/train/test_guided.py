"""Gradients that agree stay, those that a larger one opposes go, in between chance decides as it says."""

import torch

from modicum.train.guided import guided


def test_entries_are_kept_as_often_as_the_two_gradients_agree():
    one = torch.ones(4, 4000, requires_grad=True)
    against = torch.tensor([1.0, 0.0, -0.5, -2.0])[:, None].expand(4, 4000)
    guided(one.sum(), (one * against).sum(), [one], torch.Generator().manual_seed(0))
    share = one.grad.mean(1)
    assert float(share[0]) == 1 and float(share[1]) == 1 and float(share[3]) < 0.36
    torch.testing.assert_close(share, torch.tensor([1.0, 1.0, 2 / 3, 1 / 3]), atol=0.03, rtol=0)


def test_what_no_loss_feels_has_no_gradient():
    one, other = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    guided(one.sum(), one.sum() * 0, [one, other], torch.Generator().manual_seed(0))
    assert one.grad.tolist() == [1, 1, 1] and other.grad is None
