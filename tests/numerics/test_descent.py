import pytest
import torch

from modicum.core.blocks import Blocks
from modicum.forms import Integer
from modicum.numerics.descent import descend, least
from modicum.numerics.grid import Grid

GRIDS = [Grid(2, 0, True), Grid(2, 32), Grid(3, 48), Grid(4, -1), Grid(3, 64, True)]


def problem(rows=7, columns=160, tokens=400):
    inputs = torch.randn(tokens, columns) @ torch.randn(columns, columns)
    return torch.randn(rows, columns), inputs.T @ inputs / tokens


def rounded(weight, grid, dtype=torch.float32):
    return grid.encode(weight, *grid.fit(weight, dtype))


def damped(covariance, damping=0.01):
    return (covariance + damping * covariance.diagonal().mean() * torch.eye(len(covariance))).double()


def loss(weight, form, covariance):
    error = (weight - form.spread(form.scale).float() * (form.codes.float() - _zero(form))).double()
    return float(((error @ covariance) * error).sum())


def _zero(form):
    return 2.0 ** (form.bits - 1) if form.zero is None else form.spread(form.zero).float()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_sweep_makes_the_loss_larger_and_what_is_told_is_the_loss(grid, dtype):
    weight, covariance = problem()
    form, before, losses = rounded(weight, grid, dtype), covariance.clone(), []
    for sweeps in range(5):
        (made,), (lost,) = descend([weight], [grid], [form], covariance, 0.01, sweeps)
        told = float(lost.sum())
        losses.append(loss(weight, made, damped(covariance)))
        assert told == pytest.approx(losses[-1], rel=1e-4)
        assert made.scale.dtype == dtype and made.bits == grid.bits and made.group == form.group
    assert all(after <= 1.0001 * before for before, after in zip(losses, losses[1:])) and losses[-1] < 0.9 * losses[0]
    assert torch.equal(covariance, before)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_slow_twin_moves_the_same(grid):
    """One number at a time, all sums made anew in float64."""
    weight, covariance = problem(rows=3)
    form, curvature = rounded(weight, grid), damped(covariance)
    (ours,), _ = descend([weight], [grid], [form], covariance, 0.01, 1)
    codes, scale, zero = form.codes.double(), form.scale.double(), torch.as_tensor(_zero(form)).double().expand(3, 160)
    width = grid.width(160) or 160
    levels = lambda: codes - zero
    values = lambda: levels() * form.spread(scale)
    piece = 96 if width == 48 else 128
    for low in range(0, 160, piece):
        for k in range(low, min(low + piece, 160)):
            step = form.spread(scale).expand(3, 160)[:, k]
            best = values()[:, k] + ((weight - values()) @ curvature)[:, k] / curvature[k, k]
            codes[:, k] = (best / step + zero[:, k]).round().clamp(0, grid.top)
        narrow = range(low, min(low + piece, 160), width) if width <= 64 else [0] if grid.group == 0 and low + piece >= 160 else []
        for first in narrow:
            group = slice(first, first + width)
            force = (((weight - values()) @ curvature)[:, group] * levels()[:, group]).sum(1)
            scale[:, first // width] += force / ((levels()[:, group] @ curvature[group, group]) * levels()[:, group]).sum(1)
    assert torch.equal(ours.codes.double(), codes)
    torch.testing.assert_close(ours.scale.double(), scale, rtol=1e-4, atol=0)


def test_where_inputs_are_uncorrelated_codes_stay_nearest():
    weight, covariance = problem()[0], torch.diag(torch.rand(160) + 0.1)
    grid = Grid(3, -1)  # whose scale stays as it is
    form = rounded(weight, grid)
    start = Integer(form.codes.flip(1).contiguous(), form.scale, form.zero, 3, 0)
    (made,), _ = descend([weight], [grid], [start], covariance, 0.01, 1)
    assert torch.equal(made.codes, form.codes) and made.scale is form.scale


@pytest.mark.parametrize("cuts", [(160,), (64, 96), (70, 90), (16, 16, 128)])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_of_blocks_what_two_have_in_common_counts_as_nothing(cuts, grid):
    weight, covariance = problem()
    edges = torch.tensor((0, *cuts)).cumsum(0).tolist()
    blocks = Blocks(tuple(covariance[low:high, low:high] for low, high in zip(edges, edges[1:])))
    form, whole = rounded(weight, grid), torch.block_diag(*blocks.parts)
    (made,), (lost,) = descend([weight], [grid], [form], blocks, 0.01, 3)
    told = float(lost.sum())
    assert told == pytest.approx(loss(weight, made, damped(whole)), rel=1e-4)
    assert told < 0.9 * loss(weight, form, damped(whole))


@pytest.mark.parametrize("sweeps", [0, 1, 3])
@pytest.mark.parametrize("blocks", [False, True])
def test_of_many_pieces_and_widths_together_what_is_told_is_each_ones_loss(sweeps, blocks):
    covariance, weights = problem(columns=900, tokens=1200)[1], [torch.randn(rows, 900) for rows in (3, 20, 5, 2, 4)]
    whole = torch.block_diag(covariance[:400, :400], covariance[400:, 400:]) if blocks else covariance
    moment = Blocks((covariance[:400, :400], covariance[400:, 400:])) if blocks else covariance
    grids = [Grid(2, 0, True), Grid(2, 32), Grid(3, 48), Grid(4, -1), Grid(3, 300)]
    forms = [rounded(weight, grid) for weight, grid in zip(weights, grids)]
    made, told = descend(weights, grids, forms, moment, 0.01, sweeps)
    for weight, form, start, lost in zip(weights, made, forms, told):
        assert float(lost.sum()) == pytest.approx(loss(weight, form, damped(whole)), rel=1e-4)
        assert float(lost.sum()) <= (0.95 if sweeps else 1.0001) * loss(weight, start, damped(whole))


def test_weights_below_each_other_move_to_the_bit_as_each_alone():
    covariance, weights = problem()[1], [torch.randn(rows, 160) for rows in (3, 40, 17, 1, 16)]
    forms = [rounded(weight, grid) for weight, grid in zip(weights, GRIDS)]
    together, _ = descend(weights, GRIDS, forms, covariance, 0.01, 2)
    for weight, grid, form, ours in zip(weights, GRIDS, forms, together):
        (alone,), _ = descend([weight], [grid], [form], covariance, 0.01, 2)
        if grid.group != 48:  # its pieces are other ones where others stand beside it
            assert torch.equal(ours.codes, alone.codes) and torch.equal(ours.scale, alone.scale)


def test_inputs_that_never_were_and_weights_of_zero_are_borne():
    weight, covariance = torch.zeros(4, 64), torch.zeros(64, 64)
    grid = Grid(2, 32)
    (made,), (lost,) = descend([weight], [grid], [rounded(weight, grid)], covariance, 0.0, 2)
    assert not made.dense().any() and not lost.any()


def test_where_float32_does_not_hold_what_is_moved_forms_stay():
    draw, grid = torch.Generator().manual_seed(0), Grid(4, 0)
    for _ in range(12):
        weight, inputs = torch.randn(1, 70, generator=draw) * 1e37, torch.randn(140, 70, generator=draw)
        form = rounded(weight, grid)
        (made,), _ = descend([weight], [grid], [form], inputs.T @ inputs, 0.01, 3)
        lost = [float(((weight - each.dense()).double() @ inputs.double().T).square().sum()) for each in (made, form)]
        assert lost[0] <= 1.01 * lost[1]


@pytest.mark.parametrize("symmetric", [False, True])
def test_each_row_takes_the_form_of_least_loss(symmetric):
    weight, grid = problem()[0], Grid(2, 32, symmetric)
    forms = [grid.encode(weight, *grid.fit(weight, torch.float32, clip=clip)) for clip in (1.0, 0.5)]
    losses = [torch.tensor([1.0, torch.nan, 3, 4, 5, 6, 7]), torch.tensor([2.0, 1, torch.nan, 3, 6, 5, 8])]
    form, lowest = least(list(zip(forms, losses)))
    assert lowest.tolist() == [1, 1, 3, 3, 5, 5, 7]
    expected = torch.where((torch.arange(7) % 2 == 0)[:, None], forms[0].dense(), forms[1].dense())
    assert torch.equal(form.dense(), expected)
