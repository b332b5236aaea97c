"""Stable random parameter sharing: dense training at the full size, and steps as large as there where numbers are shared."""

import copy

import pytest
import torch
from torch import nn

from modicum.core.errors import SettingError
from modicum.train.trained import trained


def test_at_the_full_size_it_is_dense_training():
    torch.manual_seed(0)
    model, x, y = (
        nn.Sequential(nn.Linear(8, 12, bias=False), nn.Tanh(), nn.Linear(12, 4, bias=False)),
        torch.randn(32, 8),
        torch.randn(32, 4),
    )
    twin = copy.deepcopy(model)
    with trained(model, "stable_rps keep=1 chunk=5", scratch=True) as t:
        for name in t.places:
            twin.get_parameter(name).data = t.weight(name).detach().clone()
        mine, other = torch.optim.SGD(t.parameters(), lr=0.1), torch.optim.SGD(twin.parameters(), lr=0.1)
        for _ in range(10):
            for module, optimizer in ((model, mine), (twin, other)):
                optimizer.zero_grad()
                (module(x) - y).square().mean().backward()
                optimizer.step()
        for name in t.places:
            torch.testing.assert_close(t.weight(name), twin.get_parameter(name), rtol=1e-4, atol=1e-6)


def test_a_number_moves_by_the_mean_of_what_shares_it():
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    with trained(model, "stable_rps keep=0.25 chunk=4", scratch=True) as t:
        (pool,) = t.parameters()
        assert pool.numel() == 16
        before = t.weight("0.weight").detach()
        wanted = torch.ones_like(before)
        (t.weight("0.weight") * wanted).sum().backward()
        torch.optim.SGD([pool], lr=0.1).step()
        moved = t.weight("0.weight").detach() - before
    assert float(moved.abs().max()) <= 0.1 + 1e-6, "no weight moves further than alone"


def test_too_small_an_array_is_told():
    with pytest.raises(
        SettingError, match=r"keep: must leave a run of 16 numbers at least, and one for 65536 of a weight's, leaves 6.4 of 64"
    ):
        trained(nn.Sequential(nn.Linear(8, 8)), "stable_rps keep=0.1")
