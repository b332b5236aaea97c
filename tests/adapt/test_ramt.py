"""R-AMT's claim: switching off a few entries, and storing bits alone, uncovers what a weight knows beneath what disturbs it."""

import pytest
import torch
from torch import nn

from modicum.train.trained import trained


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_disturbs_is_switched_off(learn, seed):
    torch.manual_seed(seed)
    model, x = nn.Sequential(nn.Linear(32, 32, bias=False)), torch.randn(512, 32)
    wanted, odd = model[0].weight.detach().clone(), torch.zeros(1024).index_fill(0, torch.randperm(1024)[:25], 1.0).reshape(32, 32).bool()
    wanted[odd] = 0.0
    model[0].weight.data[odd] = 0.5
    before = (model(x) - x @ wanted.T).square().mean().item()
    loss, count, weights = learn(model, "ramt keep=0.05", x, x @ wanted.T, steps=100, lr=0.001, seed=seed)
    assert count == 51 and loss < 0.02 * before
    assert int(((weights["0.weight"] == 0) & odd).sum()) >= 24


def test_a_file_holds_bits_alone():
    model = nn.Sequential(nn.Linear(32, 16))
    with trained(model, "ramt keep=0.3") as t:
        assert [form.nbytes for form in t.forms().values()] == [32 * 16 // 8]
