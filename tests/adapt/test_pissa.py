"""PiSSA's claim: training the principal directions lowers the loss faster than LoRA does at equal rank."""

import pytest
import torch
from torch import nn

from modicum.train.trained import trained


def spectrum(size):
    """A weight whose singular values fall as pretrained ones do."""
    u, v = (torch.linalg.qr(torch.randn(size, size)).Q for _ in range(2))
    return u * (torch.arange(1, size + 1) ** -1.0) @ v


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_loss_falls_faster_than_lora_s(learn, seed):
    """A task within the weight's own directions: they turn a little and change their strengths."""
    losses = {}
    for method in ("lora rank=4 alpha=4.0", "pissa rank=4"):
        torch.manual_seed(seed)
        model, x = nn.Sequential(nn.Linear(64, 64, bias=False)), torch.randn(512, 64)
        model[0].weight.data = spectrum(64)
        u, s, v = torch.linalg.svd(model[0].weight.detach())
        target = (u[:, :4] + 0.05 * torch.randn(64, 4)) * (s[:4] * torch.tensor([1.5, 0.5, 1.5, 0.5])) @ v[:4] + u[:, 4:] * s[4:] @ v[4:]
        losses[method], count, _ = learn(model, method, x, x @ target.T, steps=40, lr=0.01, seed=seed)
        assert count == 4 * 128
    lora, pissa = losses.values()
    assert pissa < 0.5 * lora


def test_the_factors_are_the_principal_ones():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40, bias=False))
    weight = model[0].weight.detach().clone()
    with trained(model, "pissa rank=3") as t:
        state = t.places["0.weight"].state
        u, s, v = torch.linalg.svd(weight)
        torch.testing.assert_close((state["left"] @ state["right"]).detach(), u[:, :3] * s[:3] @ v[:3])
        assert torch.equal(t.weight("0.weight"), weight), "to the bit"


@pytest.mark.parametrize("method", ["pissa rank=3", "sorsa rank=3"])
def test_outputs_are_the_base_s_to_the_bit_at_first(method):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(96, 128)), torch.randn(64, 96)
    plain = model(x)
    with trained(model, method):
        assert torch.equal(model(x), plain)
