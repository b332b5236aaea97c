import pytest
import torch

from modicum.numerics.drift import towards
from modicum.numerics.gram import add_product
from modicum.numerics.solver import factorize


def problem(rows=9, columns=70, tokens=300):
    original = torch.randn(tokens, columns) @ torch.randn(columns, columns) / columns**0.5
    met = original + 0.3 * torch.randn(tokens, columns) @ torch.randn(columns, columns) / columns**0.5
    return torch.randn(rows, columns), original, met


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("static", [False, True])
def test_it_is_least_squares_on_what_the_original_gave(share, static):
    weight, original, met = problem()
    covariance = met.T @ met
    order = covariance.diagonal().argsort(descending=True) if static else torch.arange(70)
    found = towards(weight, (original - met).T @ met, order, factorize(covariance, 1e-7, order), share)
    best = torch.linalg.lstsq(met.double(), original.double() @ weight.double().T).solution.T
    torch.testing.assert_close(found.double(), (1 - share) * weight.double() + share * best, rtol=1e-3, atol=1e-3)


def test_damping_holds_it_near_the_weight():
    weight, original, met = problem()
    ridge = 10 * (met.T @ met).diagonal().mean() * torch.eye(70)
    found = towards(weight, (original - met).T @ met, torch.arange(70), factorize(met.T @ met, 10.0), 1.0)
    pull = weight.double() @ (original - met).T.double() @ met.double()
    torch.testing.assert_close(found.double(), weight + pull @ torch.linalg.inv((met.T @ met + ridge).double()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 40])
def test_slabs_of_rows_and_threads_change_nothing(rows, monkeypatch):
    weight, original, met = problem(rows, 64)
    drift = torch.zeros(64, 64)
    add_product(drift, original - met, met)
    order, factor = torch.arange(64), factorize(met.T @ met, 0.01)
    whole, threads = towards(weight, drift, order, factor, 0.5), torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert torch.equal(towards(weight, drift, order, factor, 0.5), whole)
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr("modicum.numerics.solver._SLAB", 7 * 64)
    torch.testing.assert_close(towards(weight, drift, order, factor, 0.5), whole)
