import pytest
import torch

from modicum.numerics.gram import add_gram, add_product, mirror


@pytest.mark.parametrize("columns", [1, 7, 300, 512, 513, 1100])
@pytest.mark.parametrize("tokens", [[0, 3], [64, 1, 100]])
def test_gram_matrices_are_those_of_float64(columns, tokens):
    chance = torch.Generator().manual_seed(columns)
    rows = [torch.randn(count, columns, generator=chance) for count in tokens]
    total = torch.zeros(columns, columns)
    for part in rows:
        add_gram(total, part)
    assert mirror(total) is total and torch.equal(total, total.T)
    whole = torch.cat(rows).double()
    torch.testing.assert_close(total.double(), whole.T @ whole, rtol=1e-5, atol=1e-4)


def test_rows_may_lie_any_way_and_stay_as_they_are():
    rows = torch.randn(40, 60, generator=torch.Generator().manual_seed(0)).T[:, ::2]
    before, total = rows.clone(), torch.zeros(20, 20)
    add_gram(total, rows)
    torch.testing.assert_close(mirror(total), before.T @ before)
    assert torch.equal(rows, before)


def test_many_tokens_lose_no_more_than_float32_must():
    """65,000 tokens of inputs far from zero, in chunks: relative to the diagonal."""
    chance, columns = torch.Generator().manual_seed(0), 64
    total, exact = torch.zeros(columns, columns), torch.zeros(columns, columns, dtype=torch.float64)
    for _ in range(64):
        rows = torch.randn(1024, columns, generator=chance) + 3
        add_gram(total, rows)
        exact += rows.double().T @ rows.double()
    scale = exact.diagonal().sqrt()
    # Processors add in different orders: under 1e-6 on some, 1.07e-6 on others.
    assert float(((mirror(total).double() - exact) / scale / scale[:, None]).abs().max()) < 1.5e-6


@pytest.mark.parametrize("columns, tokens", [(5, 20_000), (96, 8192), (300, 4096), (1024, 8192)])
def test_bits_do_not_depend_on_threads(columns, tokens):
    rows = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(0))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(torch.zeros(columns, columns))
            add_gram(found[-1], rows)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("terms", [9, 128, 768, 3000])
@pytest.mark.parametrize("shape", [(9, 17), (9, 304), (31, 100), (137, 17), (137, 304), (265, 100)])
def test_bits_of_a_product_do_not_depend_on_threads(terms, shape):
    draw, made, before = torch.Generator().manual_seed(0), [], torch.get_num_threads()
    left, right = (torch.randn(terms, size, generator=draw) for size in shape)
    try:
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            made.append(torch.zeros(shape))
            add_product(made[-1], left, right)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(made[0], other) for other in made[1:])
