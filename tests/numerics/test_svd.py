import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modicum.numerics.svd import principal, truncated, whitened

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
        left, right = whitened(matrix, covariance, rank)
        lost = float((inputs.double() @ (left @ right - matrix).double().T).norm())
        assert left.shape == (8, rank) and right.shape == (rank, 12)
        assert lost == pytest.approx(tail(matrix.double() @ inputs.double().T, rank), rel=1e-3, abs=1e-2)
        plain = torch.mm(*truncated(matrix, rank))
        assert rank == 8 or lost < float((inputs @ (plain - matrix).T).norm())


def through_eigenvectors(matrix, covariance, rank):
    """The naive twin: a root of the covariance from all its eigenvectors, an SVD in full, and the root's inverse."""
    values, vectors = np.linalg.eigh(covariance.double().numpy())
    roots = np.sqrt(values.clip(1e-6 * values[-1]))
    left, lengths, right = np.linalg.svd(matrix.double().numpy() @ vectors * roots, full_matrices=False)
    return torch.from_numpy((left[:, :rank] * lengths[:rank]) @ right[:rank] / roots @ vectors.T)


@pytest.mark.parametrize(("rows", "columns"), [(6, 40), (40, 24), (24, 24)])
@pytest.mark.parametrize("tokens", [400, 12], ids=["definite", "semidefinite"])
def test_any_root_gives_what_the_eigenvectors_give(rows, columns, tokens):
    """Also where there are fewer tokens than columns: it loses as little on them, and no more on directions that they never took."""
    inputs = torch.randn(tokens, columns) @ (torch.randn(columns, columns) + 2.0)
    matrix, covariance, cache = torch.randn(rows, columns), inputs.T @ inputs, {}
    felt = lambda error: float(torch.trace(error @ covariance.double() @ error.T))
    for rank in (1, 4, 11):
        twin = through_eigenvectors(matrix, covariance, rank)
        ours = torch.mm(*whitened(matrix, covariance, rank, cache)).double()
        scale = felt(matrix.double())
        assert felt(matrix - ours) == pytest.approx(felt(matrix - twin), rel=1e-3, abs=1e-5 * scale)
        assert float((matrix - ours).norm()) < 1.02 * max(float((matrix - twin).norm()), float(matrix.norm()))
        if tokens > columns:
            assert felt(ours - twin) < 1e-4 * scale
    assert ("root" in cache) == (rows > columns)


@pytest.mark.parametrize(("rows", "columns"), [(16, 2000), (900, 96)])
def test_equal_bits_with_any_number_of_threads(rows, columns):
    inputs, matrix, before = torch.randn(100, columns), torch.randn(rows, columns), torch.get_num_threads()
    covariance, made = inputs.T @ inputs, []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        made.append(whitened(matrix, covariance, 4))
    torch.set_num_threads(before)
    assert all(torch.equal(one, other) for factors in made[1:] for one, other in zip(made[0], factors))


def test_white_inputs_change_nothing():
    matrix = torch.randn(6, 9)
    torch.testing.assert_close(torch.mm(*whitened(matrix, 3 * torch.eye(9), 2)), torch.mm(*truncated(matrix, 2)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("covariance", [torch.zeros(6, 6), torch.ones(6, 6), torch.diag(torch.tensor([1e6, 1.0, 0, 0, 0, 0]))])
def test_directions_never_taken_stay_bounded(covariance):
    matrix = torch.randn(4, 6)
    value = torch.mm(*whitened(matrix, covariance, 2))
    assert torch.isfinite(value).all() and float(value.norm()) < 10 * float(matrix.norm())
    torch.testing.assert_close(torch.mm(*whitened(matrix, covariance, 4)), matrix, rtol=1e-2, atol=1e-2)


def test_principal_values_are_found_without_the_rest():
    """Of a spectrum that falls as pretrained weights' do; of random numbers, whose largest values lie close, to within a few hundredths."""
    draw = torch.Generator().manual_seed(0)
    falling = torch.arange(1, 601) ** -0.5
    turned = [torch.linalg.qr(torch.randn(size, 600, generator=draw)).Q for size in (700, 600)]
    matrix = turned[0] * falling @ turned[1].T
    u, s, v = principal(matrix, 12, torch.Generator().manual_seed(1))
    assert float((s / falling[:12] - 1).abs().max()) < 1e-5
    torch.testing.assert_close(u * s @ v, turned[0][:, :12] * falling[:12] @ turned[1][:, :12].T, atol=2e-4, rtol=0)
    flat = torch.randn(600, 600, generator=draw)
    found = principal(flat, 12, torch.Generator().manual_seed(1))[1]
    assert float((found / torch.linalg.svdvals(flat)[:12] - 1).abs().max()) < 0.03
    assert not principal(torch.zeros(600, 600), 3, draw)[1].any()
