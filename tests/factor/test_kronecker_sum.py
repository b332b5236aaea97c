"""Sums of Kronecker products: the weight at one, what PHM begins with above, and healed or trained on from there."""

import pytest
import torch

from modicum.core.parametrization import Start, Step
from modicum.factor import KroneckerSum
from modicum.restrict import Phm


def test_it_reduces_to_the_weight_at_one_and_has_fewer_numbers_above(layer):
    thing = layer(24, 40)
    torch.testing.assert_close(thing.apply(KroneckerSum(n=1)).dense(), thing.weight, rtol=1e-5, atol=1e-5)
    forms = [thing.apply(KroneckerSum(n=n)) for n in (2, 4, 8)]
    assert [form.values for form in forms] == [n**3 + 24 * 40 // n + 1 for n in (2, 4, 8)]


@pytest.mark.parametrize("n", [2, 4])
def test_it_is_what_phm_begins_with_on_a_trained_weight(layer, n):
    thing, method = layer(24, 40), Phm(n=n)
    state = method.begin(Start("w", (24, 40), thing.weight, torch.Generator().manual_seed(0), 0))
    torch.testing.assert_close(method.weight(None, state, Step()), thing.apply(KroneckerSum(n=n)).dense())


def test_what_does_not_divide_takes_the_next_smaller_rule(layer):
    assert layer(9, 15).apply(KroneckerSum(n=4)).values == 27 + 9 * 15 // 3 + 1
