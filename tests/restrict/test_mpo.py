"""Matrix product operators: exact at a whole bond, smaller below, and a centre that blocks share."""

import pytest
import torch
from torch import nn

from modicum.core.parametrization import Start, Step
from modicum.restrict import Mpo
from modicum.train.trained import trained


def begun(method, weight):
    return method.begin(Start("w", tuple(weight.shape), weight, torch.Generator().manual_seed(0), 0))


@pytest.mark.parametrize("shape", [(16, 32), (12, 8), (10, 6), (7, 5), (1, 3)])
def test_a_whole_bond_is_exact_and_a_smaller_one_is_nearer_the_larger_it_is(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    errors = [float((Mpo(bond=bond).weight(None, begun(Mpo(bond=bond), weight), Step()) - weight).norm()) for bond in (1, 2, 4, 16)]
    assert errors[-1] < 1e-4 and errors == sorted(errors, reverse=True)


def test_fewer_numbers_below_the_whole_bond():
    state = begun(Mpo(bond=8), torch.randn(64, 64))
    assert sum(part.numel() for part in state.trained.values()) == 16 * 8 * 2 + 8 * 16 * 8
    assert Mpo(bond=8).form(state).values == 16 * 8 * 2 + 8 * 16 * 8


def test_blocks_share_their_centres():
    model = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(3))
    alone, together = (
        trained(model, dict.fromkeys(["0.weight", "1.weight", "2.weight"], text), scratch=True).count
        for text in ("mpo bond=4", "mpo bond=4 shared=true")
    )
    assert alone - together == 2 * 4 * 4
