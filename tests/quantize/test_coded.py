import pytest
import torch

from modicum.core.unit import Stats
from modicum.quantize import Coded, Nearest


def test_a_coded_form_has_less_error_than_a_grid_of_the_same_bytes(layer):
    thing = layer(256, 128)
    grid = thing.apply(Nearest(bits=4, group=0, symmetric=True))
    ours = thing.apply(Coded(rate=8 * grid.nbytes / (256 * 128) - 0.01))
    assert ours.nbytes <= grid.nbytes
    assert (ours.dense() - thing.weight).norm() < 0.6 * (grid.dense() - thing.weight).norm()


@pytest.mark.parametrize("bits", [1.0, 2.5, 6.0])
def test_each_row_pays_for_its_own_deviation(layer, bits):
    """Rows of very different sizes under one step: large ones take the bits, small ones next to none."""
    thing = layer(64, 128)
    thing.weight *= torch.logspace(0, -3, 64)[:, None]
    form = thing.apply(Coded(rate=bits))
    assert form.rows[0] - form.rows[-1] == pytest.approx(4 * 3 * 3.32, abs=6)
    assert (form.codes[0] != 0).any() and not form.codes[-1].any()


def felt(rows, columns):
    """A table's weight, how often its entries were looked up, and the second moment of a gradient that feels some directions far more."""
    gradients = torch.randn(4 * columns, columns) * torch.logspace(0, -1.5, columns) @ torch.linalg.qr(torch.randn(columns, columns))[0]
    frequency = (1000 / torch.arange(1, rows + 1)).floor()
    return torch.randn(rows, columns), Stats(count=int(frequency.sum()), frequency=frequency, felt=gradients.T @ gradients)


@pytest.mark.parametrize("rate", [1.5, 3.0])
def test_a_table_loses_least_where_it_is_felt(rate):
    weight, stats = felt(512, 64)
    lost = lambda form: float((stats.frequency[:, None] * ((form.dense() - weight) @ stats.felt) * (form.dense() - weight)).sum())
    plain, ours = (Coded(rate=rate).code(weight, seen, torch.float32) for seen in (Stats(), stats))
    assert ours.nbytes == plain.nbytes
    assert lost(ours) < 0.5 * lost(plain)


def test_a_table_that_is_felt_alike_everywhere_is_rounded_to_the_nearest():
    weight, stats = felt(64, 32)
    alike = Stats(count=64, frequency=torch.ones(64), felt=torch.eye(32))
    plain, ours = (Coded(rate=3.0).code(weight, seen, torch.float32) for seen in (Stats(), alike))
    assert torch.equal(plain.codes, ours.codes) and not ours.raised.any()


def test_rates_to_come_are_what_each_is_alone():
    weight, stats = felt(128, 32)
    rates = [Coded(rate=rate, paths=False) for rate in (1.5, 2.0, 4.0)]
    stats.ahead = tuple(rates)
    for rate in rates:
        alone = rate.code(weight, felt_again(stats), torch.float32)
        assert torch.equal(rate.code(weight, stats, torch.float32).dense(), alone.dense())


def felt_again(stats):
    return Stats(count=stats.count, frequency=stats.frequency, felt=stats.felt)
