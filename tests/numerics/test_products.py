"""Nearest matrices made of small ones: exact where they can be, and as near as theory says elsewhere."""

import pytest
import torch

from modicum.numerics.products import chain, kronecker


def test_a_sum_of_kronecker_products_is_found_again():
    draw = torch.Generator().manual_seed(0)
    rules, blocks = torch.randn(2, 3, 3, generator=draw), torch.randn(2, 4, 5, generator=draw)
    weight = sum(torch.kron(rule, block) for rule, block in zip(rules, blocks))
    found = sum(torch.kron(rule, block) for rule, block in zip(*kronecker(weight, 3, 3, 2)))
    torch.testing.assert_close(found.float(), weight, rtol=1e-5, atol=1e-5)


def test_no_single_product_is_nearer():
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    rules, blocks = kronecker(weight, 2, 2, 1)
    blocked = weight.double().reshape(2, 3, 2, 4).permute(0, 2, 1, 3).reshape(4, 12)
    lost = (torch.kron(rules[0], blocks[0]) - weight).norm()
    assert float(lost) == pytest.approx(float(torch.linalg.svdvals(blocked)[1:].square().sum().sqrt()))


def test_a_chain_of_whole_bonds_is_the_weight():
    weight = torch.randn(32, 48, generator=torch.Generator().manual_seed(0))
    left, centre, right = chain(weight, 16)
    assert left.shape == (16, 16) and centre.shape == (16, 2 * 3 * 16) and right.shape == (16, 16)
