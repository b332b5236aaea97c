import itertools

import pytest
import torch

from modicum.forms.ggml_lattice import lattice
from modicum.numerics.ggml_lattice import nearest_under, together

NAMES = pytest.mark.parametrize("name", ["iq2_s", "iq3_s"])


def every(points):
    """Every point (count, width) with every choice of signs, in float64."""
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=points.shape[1])), dtype=torch.float64)
    return (points.double()[:, None] * signs).flatten(0, 1)


@NAMES
def test_the_nearest_point_is_that_of_all_with_all_signs(name):
    """Twin: every point with every sign, where columns count each for itself."""
    known, chance = lattice(name), torch.Generator().manual_seed(0)
    placed = torch.randn(2 * known.width, 3, generator=chance) * known.sizes.mean()
    counts = torch.rand(placed.shape, generator=chance) + 0.1
    levels, all_points = together(known, placed, counts), every(known.points)
    for part, group in itertools.product(range(2), range(3)):
        rows = slice(part * known.width, (part + 1) * known.width)
        own, weight = placed[rows, group].double(), counts[rows, group].double()
        least = ((all_points - own).square() * weight).sum(1).min()
        assert float(((levels[rows, group] - own).square() * weight).sum()) == pytest.approx(float(least), rel=1e-5)


@NAMES
def test_under_a_metric_it_is_the_nearest_with_the_signs_of_the_aim(name):
    known, chance = lattice(name), torch.Generator().manual_seed(1)
    root = torch.randn(known.width, known.width, generator=chance)
    metric, aim = root @ root.T + torch.eye(known.width), torch.randn(known.width, 5, generator=chance) * known.sizes.mean()
    levels = nearest_under(known, aim, metric)
    assert torch.equal(levels < 0, aim < 0)
    cost = lambda error: torch.einsum("...i,ij,...j->...", error, metric.double(), error)
    for row in range(5):
        signed = known.points.double() * aim[:, row].sign()
        least = cost(signed - aim[:, row].double()).min()
        assert float(cost(levels[:, row].double() - aim[:, row].double())) == pytest.approx(float(least), rel=1e-4)


@NAMES
def test_points_and_signs_come_back_from_codes(name):
    known = lattice(name)
    index = torch.arange(len(known.points)).view(2, -1)
    negative = torch.rand(2, index.shape[1] * known.width, generator=torch.Generator().manual_seed(2)) < 0.5
    found, signs = known.index(known.codes(index, negative))
    assert torch.equal(found, index) and torch.equal(signs, negative)
