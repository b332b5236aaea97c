"""LoRA-GA's claim: begun along the gradient, the same numbers learn a change that LoRA takes far longer to find."""

import pytest
import torch
from torch import nn

from modicum.train.trained import trained


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_directions_of_the_gradient_are_learnt_sooner(seed):
    losses = {}
    for method in ("lora rank=2", "lora_ga rank=2"):
        torch.manual_seed(seed)
        model, x = nn.Sequential(nn.Linear(48, 48, bias=False)), torch.randn(512, 48)
        y = x @ (model[0].weight.detach() + torch.randn(48, 2) @ torch.randn(2, 48) / 24).T
        (model(x) - y).square().mean().backward()
        gradient = model[0].weight.grad.clone()
        with trained(model, method, gradients={"0.weight": gradient}, seed=seed) as t:
            assert torch.equal(t.weight("0.weight"), model[0]._parameters.get("weight"))
            optimizer = torch.optim.Adam(t.parameters(), lr=0.01)
            for _ in range(10):
                loss = (model(x) - y).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            losses[method] = loss.item()
    assert losses["lora_ga rank=2"] < 0.7 * losses["lora rank=2"]


def test_without_a_gradient_it_is_lora():
    model = nn.Sequential(nn.Linear(8, 6))
    found = []
    for method in ("lora rank=2", "lora_ga rank=2"):
        with trained(model, method) as t:
            found.append(t.places["0.weight"].state["right"].detach())
    assert torch.equal(*found)
