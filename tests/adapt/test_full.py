"""Full fine-tuning is what others are held against: it reaches any weight, and is written as a weight."""

import torch
from torch import nn

from modicum.forms import Dense
from modicum.train.trained import trained


def test_any_weight_is_reached(learn):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 16, bias=False)), torch.randn(256, 16)
    loss, count, _ = learn(model, "full", x, x @ torch.randn(16, 16).T, steps=1500)
    assert count == 256 and loss < 1e-6


def test_a_delta_holds_the_weight_in_the_dtype_that_is_stored():
    model = nn.Sequential(nn.Linear(16, 8, dtype=torch.bfloat16))
    with trained(model, "full") as t:
        assert all(parameter.dtype == torch.float32 for parameter in t.parameters())
        (form,) = t.delta().forms.values()
    assert isinstance(form, Dense) and form.nbytes == 2 * 128
