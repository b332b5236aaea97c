"""Batch norms are measured anew on the compressed model, and scale and bias take up the difference."""

import pytest
import torch
from torch import nn

import modicum
from modicum.core.errors import SettingError
from modicum.fit.retune import _folded
from modicum.testing import zoo


def test_what_is_folded_gives_inputs_what_they_had():
    norm, x = nn.BatchNorm2d(3).eval(), torch.randn(4, 3, 5, 5).double()
    norm.weight.data, norm.bias.data = torch.rand(3) + 0.5, torch.randn(3)
    norm.running_mean, norm.running_var = torch.randn(3), torch.rand(3) + 0.5
    told = lambda x: (x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0).sqrt())
    scale, shift = torch.rand(3).view(-1, 1, 1) + 0.5, torch.randn(3).view(-1, 1, 1)
    other = nn.BatchNorm2d(3).eval()
    other.load_state_dict(
        norm.state_dict() | {name[2:]: value for name, value in _folded("n", norm, told(x), told(scale * x + shift)).items()}
    )
    torch.testing.assert_close(other((scale * x + shift).float()), norm(x.float()), rtol=1e-4, atol=1e-4)


def test_a_net_of_few_bits_comes_nearer_and_its_statistics_stay():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.BatchNorm2d(32), nn.Flatten(), nn.LazyLinear(5)
    )
    batches = [(torch.rand(8, 3, 8, 8) + 2,) for _ in range(8)]
    with torch.no_grad():
        for batch in batches:
            net.train()(*batch)
    net.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fit = lambda retune: modicum.fit(net, data=batches, method="nearest bits=3 group=0", target="modicum", retune=retune, allow_broken=True)
    plain, tuned = fit(False), fit(True)
    assert tuned.receipt["quality"]["mean"] < 0.9 * plain.receipt["quality"]["mean"]
    assert any("2 batch norms tuned anew" in event for event in tuned.receipt["events"])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    state = tuned.model.state_dict()
    assert torch.equal(state["1.running_mean"], before["1.running_mean"]) and not torch.equal(state["1.bias"], before["1.bias"])


def test_a_model_without_batch_norms_is_refused():
    module, batches = zoo.build("mlp")
    with pytest.raises(SettingError, match="retune: .* must have batch norms"):
        modicum.fit(module, data=batches, method="nearest bits=4", retune=True)
