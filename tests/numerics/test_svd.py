import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modicum.numerics.svd import Eigenspace, truncated, whitened

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 14))


def tail(matrix, rank):
    """Least Frobenius error of any approximation of that rank (Eckart and Young)."""
    return float(np.sqrt((np.linalg.svd(matrix.double().numpy())[1][rank:] ** 2).sum()))


@given(SHAPES)
def test_truncation_is_the_best_there_is(case):
    rows, columns, rank = case
    matrix = torch.randn(rows, columns)
    left, right = truncated(matrix, rank)
    rank = min(rank, rows, columns)
    assert left.shape == (rows, rank) and right.shape == (rank, columns) and left.dtype == right.dtype == torch.float32
    assert left.is_contiguous() and right.is_contiguous()
    assert float((left @ right - matrix).norm()) == pytest.approx(tail(matrix, rank), rel=1e-4, abs=1e-4)
    torch.testing.assert_close(right @ right.T, torch.eye(rank), rtol=0, atol=1e-4)


def test_singular_values_come_in_order():
    left, _ = truncated(torch.randn(20, 30), 8)
    lengths = left.norm(dim=0)
    assert (lengths[1:] <= lengths[:-1] * (1 + 1e-6)).all()


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_zeros_and_low_ranks_stay_finite(shape):
    for matrix in (torch.zeros(shape), torch.ones(shape)):
        left, right = truncated(matrix, 3)
        assert torch.isfinite(left).all() and torch.isfinite(right).all()
        torch.testing.assert_close(left @ right, matrix, rtol=0, atol=1e-5)


def test_whitening_truncates_the_outputs():
    inputs = torch.randn(200, 12) @ torch.randn(12, 12)
    matrix, covariance = torch.randn(8, 12), inputs.T @ inputs
    for rank in (1, 3, 8):
        left, right = whitened(matrix, Eigenspace.of(covariance), rank)
        lost = float((inputs.double() @ (left @ right - matrix).double().T).norm())
        assert left.shape == (8, rank) and right.shape == (rank, 12)
        assert lost == pytest.approx(tail(matrix.double() @ inputs.double().T, rank), rel=1e-3, abs=1e-2)
        plain = torch.mm(*truncated(matrix, rank))
        assert rank == 8 or lost < float((inputs @ (plain - matrix).T).norm())


def test_white_inputs_change_nothing():
    matrix = torch.randn(6, 9)
    torch.testing.assert_close(
        torch.mm(*whitened(matrix, Eigenspace.of(3 * torch.eye(9)), 2)), torch.mm(*truncated(matrix, 2)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("covariance", [torch.zeros(6, 6), torch.ones(6, 6), torch.diag(torch.tensor([1e6, 1.0, 0, 0, 0, 0]))])
def test_directions_never_taken_stay_bounded(covariance):
    matrix = torch.randn(4, 6)
    value = torch.mm(*whitened(matrix, Eigenspace.of(covariance), 2))
    assert torch.isfinite(value).all() and float(value.norm()) < 10 * float(matrix.norm())
    torch.testing.assert_close(torch.mm(*whitened(matrix, Eigenspace.of(covariance), 4)), matrix, rtol=1e-2, atol=1e-2)
