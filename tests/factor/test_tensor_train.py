"""Tensor trains: the weight at whole bonds, what MPO begins with below."""

import torch

from modicum.core.parametrization import Start, Step
from modicum.factor import TensorTrain
from modicum.restrict import Mpo


def test_it_reduces_to_the_weight_at_whole_bonds_and_is_nearer_the_larger_the_bond(layer):
    thing = layer(32, 48)
    lost = [float((thing.apply(TensorTrain(bond=bond)).dense() - thing.weight).norm()) for bond in (2, 4, 8, 16)]
    assert lost == sorted(lost, reverse=True) and lost[-1] < 1e-4
    assert thing.apply(TensorTrain(bond=8)).values == 16 * 8 * 2 + 8 * 2 * 3 * 8


def test_it_is_what_mpo_begins_with_on_a_trained_weight(layer):
    thing, method = layer(32, 48), Mpo(bond=6)
    state = method.begin(Start("w", (32, 48), thing.weight, torch.Generator().manual_seed(0), 0))
    torch.testing.assert_close(method.weight(None, state, Step()), thing.apply(TensorTrain(bond=6)).dense())
