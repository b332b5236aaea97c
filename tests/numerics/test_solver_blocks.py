"""A covariance in blocks is that with zeros beside them: every method that takes blocks gives what it gives on the whole."""

import pytest
import torch

from modicum.core.blocks import Blocks
from modicum.core.unit import Stats
from modicum.numerics.grid import Grid
from modicum.numerics.solver import factorize
from modicum.numerics.svd import whitened
from modicum.prune import Sparsegpt
from modicum.quantize import Gptq

SIZES = (64, 96, 32)


def problem(rows=24, sizes=SIZES):
    inputs = [torch.randn(4 * size, size) @ torch.randn(size, size) for size in sizes]
    moment = Blocks(tuple(x.T @ x for x in inputs))
    return torch.randn(rows, sum(sizes)), moment, torch.block_diag(*moment.parts)


def both(moment, whole):
    return Stats(count=1, blocks=moment), Stats(count=1, covariance=whole)


@pytest.mark.parametrize("order", ["static", "none"])
@pytest.mark.parametrize("group", [0, 32])
def test_rounding(order, group):
    weight, moment, whole = problem()
    made = [
        Gptq(bits=3, group=group, order=order, sweeps=0).quantize(weight, Grid(3, group), stats, torch.float32)
        for stats in both(moment, whole)
    ]
    same = (made[0].codes == made[1].codes).float().mean()
    assert same > 0.999  # values on the edge between two levels fall either way


def test_rounding_groups_that_blocks_would_cut():
    weight, moment, whole = problem(sizes=(40, 56, 96))
    stats = Stats(count=1, blocks=moment)
    made = Gptq(bits=4, group=48, order="none").quantize(weight, Grid(4, 48), stats, torch.float32)
    lost = lambda form: float(((weight - form.dense()) @ whole * (weight - form.dense())).sum())
    nearest = Gptq(bits=4, group=48, order="none").quantize(
        weight, Grid(4, 48), Stats(count=1, covariance=torch.diag(whole.diagonal())), torch.float32
    )
    assert lost(made) < 0.8 * lost(nearest)


@pytest.mark.parametrize("settings", [{"block": 48}, {"pattern": "2:4"}], ids=str)
def test_pruning(settings):
    weight, moment, whole = problem(sizes=(96, 48, 96))
    (value, mask), (plain, other) = (Sparsegpt(keep=0.5, **settings).solve(weight, stats) for stats in both(moment, whole))
    assert (mask == other).float().mean() > 0.99
    kept = (mask == other).all(1)
    torch.testing.assert_close(value[kept], plain[kept], rtol=1e-3, atol=1e-3)


def test_pruning_in_spans_that_blocks_would_cut():
    weight, moment, _ = problem(sizes=(50, 70, 72))
    value, mask = Sparsegpt(keep=0.5).solve(weight, Stats(count=1, blocks=moment))
    assert float(mask.float().mean()) == pytest.approx(0.5, abs=0.01) and torch.equal(value != 0, mask)


@pytest.mark.parametrize("rows", [24, 300])
def test_low_ranks(rows):
    weight, moment, whole = problem(rows)
    one, other = (torch.mm(*whitened(weight, covariance, 5)) for covariance in (moment, whole))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_the_hardest_block_says_how_much_damping_it_took():
    starved = torch.randn(1, 64)
    moment = Blocks((64 * torch.eye(64), starved.T @ starved))
    factor = factorize(moment, 1e-9)
    assert 1 <= factor.retries <= 6 and factor.damping == pytest.approx(1e-9 * 10**factor.retries)
    assert factor.parts[0].retries == 0 and len(factor.curvature) == 128
