"""Grids are kept exactly while scales, zero points and codes move; codes through rounding find what rounding to nearest misses."""

import pytest
import torch
from torch import nn

from modicum.core.errors import SettingError
from modicum.core.parametrization import Start, Step
from modicum.forms import Dense, Integer
from modicum.restrict import Held, Scales
from modicum.train.trained import trained


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


def integer(zero=True, dtype=torch.bfloat16):
    codes = torch.randint(0, 4, (6, 16), generator=chance(), dtype=torch.uint8)
    zeros = torch.randint(0, 4, (6, 2), generator=chance(2), dtype=torch.uint8) if zero else None
    return Integer(codes, torch.rand(6, 2, generator=chance(1)).to(dtype), zeros, 2, 8)


def begun(stored, **settings):
    method = Scales(**settings)
    assert method.suits(stored)
    return method, method.begin(Start(unit="w", shape=stored.shape, weight=None, chance=chance(5), seed=0, stored=stored))


@pytest.mark.parametrize("settings", [{}, {"codes": True}, {"zeros": True}], ids=str)
@pytest.mark.parametrize("zero", [True, False])
def test_the_grid_stays_one(settings, zero):
    stored = integer(zero)
    method, state = begun(stored, **settings)
    assert torch.equal(method.weight(None, state, Step()), stored.dense().float())
    moved = state.having({name: 0.2 * torch.randn(tensor.shape, generator=chance(6)) for name, tensor in state.trained.items()})
    form = method.form(moved)
    assert form.describe() == stored.describe() and form.outline == stored.outline and form.nbytes == stored.nbytes
    assert int(form.codes.max()) <= 3 and torch.equal(form.codes, stored.codes) != bool(settings.get("codes"))
    assert torch.equal(form.dense().float(), method.weight(None, moved, Step(1, 1)))
    again = Integer.restored(form.tensors(), form.settings(), form.shape, form.dtype)
    assert torch.equal(again.dense(), form.dense())


def test_scales_alone_are_what_held_trains():
    stored = integer()
    found = []
    for method in (Scales(), Held()):
        state = method.begin(Start(unit="w", shape=stored.shape, weight=None, chance=chance(), seed=0, stored=stored))
        leaf = torch.full((6, 2), 0.1).requires_grad_()
        weight = method.weight(None, state.having({"scale": leaf}), Step())
        weight.square().sum().backward()
        found.append((weight.detach(), leaf.grad))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)


def test_trained_codes_find_what_the_nearest_miss():
    """Inputs that go together: what counts is the sum of their weights, which the nearest codes get wrong."""
    torch.manual_seed(0)
    x = torch.randn(256, 4).repeat_interleave(8, 1) + 0.05 * torch.randn(256, 32)
    model = nn.Sequential(nn.Linear(32, 8, bias=False)).requires_grad_(False)
    wanted, errors = model(x), {}
    for option in ("scales bits=2 codes=false", "scales bits=2 codes=true"):
        with trained(model, option, total=300) as t:
            optimizer = torch.optim.Adam(t.parameters(), lr=0.001)
            for _ in range(300):
                loss = (model(x) - wanted).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                errors.setdefault(option, []).append(loss.item())
    plain, codes = errors.values()
    assert plain[0] == codes[0] and min(plain) < plain[0] and min(codes) < 0.5 * min(plain)


def test_what_is_no_grid_is_refused_in_words():
    assert not Scales().suits(Dense(torch.zeros(2, 3)))
    with pytest.raises(SettingError, match="stored as integers"):
        Scales().begin(Start(unit="w", shape=(2, 3), weight=None, chance=chance(), seed=0, stored=Dense(torch.zeros(2, 3))))
