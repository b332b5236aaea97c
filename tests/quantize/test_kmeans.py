import pytest
import torch

from modicum.forms import Codebook
from modicum.forms.codebook import Vectors
from modicum.numerics.codebook import kmeans, nearest
from modicum.quantize import Kmeans


def test_what_lies_on_a_codebook_comes_back(layer):
    thing, layout = layer(64, 48), Vectors(3, 3)
    codes = torch.randint(0, 8, (64, 1, 16), dtype=torch.uint8)
    thing.weight = Codebook(codes, torch.randn(layout.tables(48)).half(), torch.ones(64, 1), layout, 48, torch.float32).dense()
    thing.weight /= thing.weight.square().mean(1, keepdim=True).sqrt()
    again = thing.apply(Kmeans(bits=5, dimension=3))
    assert float((again.dense() - thing.weight).norm() / thing.weight.norm()) < 0.12


def test_of_gaussian_numbers_it_finds_the_levels_that_are_best():
    """Two bits of a Gaussian leave 0.1175 of its variance at the best of levels (Max, 1960)."""
    points = torch.erfinv((torch.arange(8001) + 0.5) / 8001 * 2 - 1)[:, None] * 2**0.5
    entries = kmeans(points, torch.ones_like(points), 2)
    codes, value = nearest(points, entries[None])
    assert abs(float((value - points).square().mean()) - 0.1175) < 2e-3
    torch.testing.assert_close(entries[:, 0].sort().values, torch.tensor([-1.510, -0.4528, 0.4528, 1.510]), atol=0.02, rtol=0)


def test_a_beam_finds_what_looking_at_all_sums_does():
    points, tables = torch.randn(200, 3), torch.randn(2, 8, 3)
    metric = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 0.7]])
    _, value = nearest(points, tables, metric)
    sums = (tables[0][:, None] + tables[1]).flatten(0, 1)
    cost = lambda error: ((error @ metric) * error).sum(-1)
    torch.testing.assert_close(cost(points - value), cost(points[:, None] - sums).amin(1))


def test_more_stages_and_more_tables_lose_less(layer):
    thing = layer(128, 64)
    error = lambda **settings: float((thing.apply(Kmeans(**settings)).dense() - thing.weight).square().mean())
    one, two = error(bits=4, dimension=4), error(bits=4, dimension=4, stages=2)
    assert two < 0.6 * one and error(bits=4, columns=16) < error(bits=4)


@pytest.mark.parametrize("settings", [{"bits": 8}, {"bits": 4, "stages": 2}, {"bits": 4, "stages": 2, "columns": 16}], ids=str)
def test_a_ragged_last_vector_takes_its_nearest_entry_whatever_stands_beyond_the_weight(layer, settings):
    """Of a vector of 16 columns one is left: of so many entries one is near to it."""
    thing = layer(400, 17)
    form = thing.apply(Kmeans(dimension=16, **settings))
    assert float((form.dense() - thing.weight)[:, -1].square().mean() / thing.weight[:, -1].square().mean()) < 0.03
