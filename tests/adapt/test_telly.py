"""Telly's claim: with the first blocks at rest the rest learns a change of what lies late, with fewer numbers and no gradients below."""

import pytest
import torch
from torch import nn

from modicum.core.errors import SettingError
from modicum.train.trained import trained


def test_first_blocks_rest_and_no_gradient_reaches_them():
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    model = nn.Module()
    model.h = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4))
    model.head = nn.Linear(8, 2)
    model.forward = lambda x: model.head(model.h[3](model.h[2](model.h[1](model.h[0](x)))))
    y, seen = model.forward(x).detach() @ torch.randn(2, 2), []
    model.h[1].register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    with trained(model, {"*.weight": "full | telly frozen=2"}) as t:
        before = {name: t.weight(name).detach().clone() for name in t.places}
        optimizer, losses = torch.optim.Adam(t.parameters(), lr=0.02), []
        for _ in range(100):
            loss = (model.forward(x) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            t.revise(optimizer)
            losses.append(loss.item())
        moved = [name for name in t.places if not torch.equal(t.weight(name).detach(), before[name])]
    assert sorted(moved) == ["h.2.0.weight", "h.3.0.weight", "head.weight"] and not any(seen)
    assert losses[-1] < 0.2 * losses[0]
    with pytest.raises(SettingError, match="frozen must leave a block that trains, is 9 of 4"):
        trained(model, {"h.*.weight": "full | telly frozen=9"})
