"""The one solve: what it gives, against its plain definition, and how its settings become one another."""

import pytest
import torch

from modicum.core.errors import ModelError
from modicum.edit.normal_equations import NormalEquations, null_space


@pytest.fixture
def case():
    torch.manual_seed(0)
    keys, values, spread = torch.randn(5, 12), torch.randn(5, 4), torch.randn(40, 12)
    return keys, values, spread.T @ spread / 40 + 0.1 * torch.eye(12)


def of(keys, values):
    equations = NormalEquations(values.shape[1], keys.shape[1])
    equations.add(keys, values)
    return equations


def test_it_is_the_least_squares_that_it_says(case):
    keys, values, protected = case
    change = of(keys, values).solve(protected).requires_grad_(True)
    loss = (keys @ change.T - values).square().sum() + torch.trace(change @ protected @ change.T)
    (gradient,) = torch.autograd.grad(loss, change)
    assert gradient.abs().max() < 1e-4


def test_sums_are_all_that_is_kept(case):
    keys, values, protected = case
    parted = NormalEquations(4, 12)
    for start in range(5):
        parted.add(keys[start : start + 1], values[start : start + 1])
    assert parted.count == 5 and torch.allclose(parted.solve(protected), of(keys, values).solve(protected), atol=1e-5)


def test_exact_gives_every_key_its_value_at_the_least_cost(case):
    keys, values, protected = case
    change = of(keys, values).solve(protected, exact=True)
    inverse = torch.linalg.inv(protected.double())
    wanted = values.double().T @ torch.linalg.inv(keys.double() @ inverse @ keys.double().T) @ keys.double() @ inverse
    assert torch.allclose(keys @ change.T, values, atol=1e-4) and torch.allclose(change, wanted.float(), atol=1e-4)
    soft = of(keys, values).solve(protected * 1e-4)
    assert torch.allclose(soft, change, atol=2e-2)  # equalities are what it tends to as nothing is protected


def test_exact_holds_no_more_keys_than_columns():
    torch.manual_seed(0)
    keys, values = torch.randn(30, 12), torch.randn(30, 4)
    change = of(keys, values).solve(torch.eye(12), exact=True)
    assert torch.allclose(change, torch.linalg.lstsq(keys, values).solution.T, atol=1e-3)
    assert (keys @ change.T - values).norm() > 0.3 * values.norm()


def test_a_change_within_a_null_space_does_nothing_outside(case):
    keys, values, _ = case
    text = torch.randn(100, 6) @ torch.randn(6, 12)
    within = null_space(text.T @ text / 100, 1e-5)
    change = of(keys, values).solve(1e-3 * torch.eye(12), within=within)
    assert torch.linalg.matrix_rank(within) == 6 and (text @ change.T).abs().max() < 1e-3 < (keys @ change.T).abs().max()


def test_what_has_no_solution_is_said(case):
    keys, values, _ = case
    with pytest.raises(ModelError, match="positive definite"):
        of(keys, values).solve(-torch.eye(12))
