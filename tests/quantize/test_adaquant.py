import pytest
import torch

from modicum.core.errors import SettingError
from modicum.numerics.grid import Grid
from modicum.quantize import Adaquant, Hqq, Nearest


@pytest.mark.parametrize("settings", [{"group": 32}, {"group": 0}, {"group": -1}, {"group": 20, "symmetric": True}], ids=str)
def test_outputs_come_nearer_than_by_rounding(settings, layer):
    thing = layer()
    errors = [thing.error(thing.apply(Adaquant(bits=3, steps=steps, **settings))) for steps in (0, 150)]
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 0.5 * thing.error(thing.apply(Nearest(bits=3, **settings)))


def test_without_steps_it_is_the_range_that_a_search_finds(layer):
    thing = layer()
    stats, grid = thing.stats(Adaquant.needs), Grid(3, 32)
    scale, zero = grid.fit(thing.weight, torch.float32, importance=stats.covariance.diagonal(), clip=0.8)
    wanted = grid.encode(thing.weight, scale, zero)
    found = Adaquant(bits=3, group=32, steps=0).quantize(thing.weight, grid, stats, torch.float32)
    assert torch.equal(found.codes, wanted.codes) and torch.equal(found.scale, wanted.scale)


def test_no_row_is_worse_for_it_and_inputs_never_seen_take_hqq(layer):
    thing = layer()
    rows = lambda form: (thing.inputs @ (form.dense() - thing.weight).T).square().sum(0)
    before, after = (thing.apply(Adaquant(bits=2, group=32, steps=steps)) for steps in (0, 40))
    assert bool((rows(after) <= rows(before) * 1.0001).all())
    assert Adaquant(bits=3, group=16).without_data() == Hqq(bits=3, group=16)
    with pytest.raises(SettingError, match=r"steps: must"):
        Adaquant(steps=-1)
