import pytest
import torch

from modicum.core.blocks import Blocks, spans


def blocks(*sizes):
    inputs = [torch.randn(3 * size, size) for size in sizes]
    return Blocks(tuple(rows.T @ rows for rows in inputs))


def whole(moment):
    return torch.block_diag(*moment.parts)


def test_it_stands_for_the_matrix_with_zeros_beside_its_blocks():
    moment, matrix = blocks(5, 7, 2), torch.randn(3, 14)
    assert len(moment) == 14 and [columns for columns, _ in spans(moment)] == [slice(0, 5), slice(5, 12), slice(12, 14)]
    torch.testing.assert_close(matrix @ moment, matrix @ whole(moment))
    assert torch.equal(moment.diagonal(), whole(moment).diagonal())


def test_a_whole_covariance_is_one_span():
    assert [columns for columns, _ in spans(torch.eye(6))] == [slice(0, 6)]


def test_zeros_have_the_width_asked_for_and_what_is_left():
    assert [len(part) for part in Blocks.zeros(300, 128).parts] == [128, 128, 44]


def test_columns_that_remain_keep_their_blocks():
    moment, columns = blocks(5, 7, 2), torch.tensor([0, 3, 5, 6, 11])
    assert torch.equal(whole(moment.kept(columns)), whole(moment)[columns][:, columns])


@pytest.mark.parametrize("step", [1, 3, 4, 6, 7, 12, 20])
def test_no_group_lies_in_two_blocks(step):
    """What two columns of a block have in common is lost where they part, and never made up."""
    moment = blocks(5, 7, 8)
    found, dense = moment.aligned(step), whole(moment)
    edges = [columns.start for columns, _ in spans(found)]
    assert all(edge % step == 0 for edge in edges) and len(found) == 20
    mask = whole(Blocks(tuple(torch.ones_like(part) for part in found.parts))).bool()
    assert torch.equal(whole(found), torch.where(mask, dense, 0.0))
    assert torch.equal(found.diagonal(), moment.diagonal())
