"""CRaSh's claim: adapters tuned where alike blocks stand for each other, and plugged into the whole, beat those tuned where blocks were dropped."""

import copy

import pytest
import torch
from torch import nn

from modicum.core.errors import SettingError
from modicum.train.changed import changed
from modicum.train.emulated import cka, clustered, emulated
from modicum.train.trained import trained


class Deep(nn.Module):
    """Residual blocks: an end, six middle ones of which neighbours are nearly one, and an end."""

    def __init__(self):
        super().__init__()
        kinds = [nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(3)]
        middle = [copy.deepcopy(kinds[kind]) for kind in (0, 0, 0, 1, 2, 2)]
        for block in middle:
            block[0].weight.data += 0.01 * torch.randn(16, 16)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(16, 16), nn.Tanh()), *middle, nn.Sequential(nn.Linear(16, 16), nn.Tanh())])
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_adapters_plugged_into_the_whole(seed):
    torch.manual_seed(seed)
    model, x = Deep(), torch.randn(256, 16)
    y = model(x + torch.tanh(x @ torch.randn(16, 16) / 4)).detach()
    state, losses = copy.deepcopy(model.state_dict()), {}
    for shared in (True, False):
        with emulated(model, [(x,)], 3, shared=shared) as stands:
            assert len({id(block) for block in model.blocks}) == 5 and len(model.blocks) == (8 if shared else 5)
            with trained(model, {"blocks.0.*": "full", "head.*": "full"}, total=150) as t:
                optimizer = torch.optim.Adam(t.parameters(), lr=0.005)
                for _ in range(150):
                    loss = (model(x) - y).square().mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                delta = t.delta()
        assert len(stands) == 6 and list(model.state_dict()) == list(state)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        with changed(model, delta), torch.no_grad():
            losses[shared] = (model(x) - y).square().mean().item()
    assert losses[True] < 0.7 * losses[False]


def test_alike_neighbours_are_clustered():
    draw = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(64, 8, generator=draw) for _ in range(3))
    turn = torch.linalg.qr(torch.randn(8, 8, generator=draw)).Q
    assert cka(a, 3 * a @ turn) == pytest.approx(1.0) and cka(a, b) < 0.5
    assert clustered([a, 2 * a, b, c, c @ turn], 3) == [[0, 1], [2], [3, 4]]
    with pytest.raises(SettingError, match="from 1 to the 6 blocks"), emulated(Deep(), [(a,)], 7):
        pass
