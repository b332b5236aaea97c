"""BitNet's claim: a network trained with ternary weights is far better than one rounded to them afterwards."""

import pytest
import torch
from torch import nn

from modicum.restrict import Bitnet
from modicum.restrict.bitnet import Bitnet as _Bitnet
from modicum.train.trained import trained


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_within_the_grid_beats_rounding_after(seed):
    torch.manual_seed(seed)
    x = torch.randn(512, 16)
    y = torch.sin(x[:, :4].sum(1, keepdim=True))
    errors = {}
    for way in ("rounded after", "trained within"):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))
        if way == "rounded after":
            _fit(model, list(model.parameters()), x, y)
        with trained(model, "bitnet inputs_in=float") as t:
            errors[way] = _fit(model, t.parameters(), x, y) if way == "trained within" else (model(x) - y).square().mean().item()
    assert errors["trained within"] < 0.5 * errors["rounded after"]


def _fit(model, parameters, x, y):
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    for _ in range(300):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_a_ternary_weight_is_itself():
    weight = torch.tensor([[0.5, -0.5], [0.5, 0.5]])
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].weight.data = weight.clone()
    with trained(model, "bitnet") as t:
        assert torch.equal(t.weight("0.weight"), weight)
        assert t.forms()["0.weight"].nbytes == 2 + 4


def test_a_delta_says_that_inputs_were_rounded():
    for text, notes in (("bitnet", 1), ("bitnet inputs_in=float", 0)):
        with trained(nn.Sequential(nn.Linear(2, 2)), text) as t:
            assert len(t.delta().notes) == notes and all("0.weight" in note for note in t.delta().notes)


def test_inputs_are_rounded_where_the_layer_is_linear_alone():
    with pytest.raises(Exception, match="kind convolution"), trained(nn.Sequential(nn.Conv1d(2, 2, 1)), {"0.weight": str(Bitnet())}):
        pass
    assert _Bitnet is Bitnet
