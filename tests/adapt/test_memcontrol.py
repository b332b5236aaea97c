"""MemControl's claim: among masks of what trains there are some that generalize better and learn less by heart than training everything does."""

import pytest
import torch
from torch import nn

from modicum.core.errors import SettingError
from modicum.train.masks import search
from modicum.train.trained import trained


class Net(nn.Module):
    """Blocks on a stream, of which the first sees it before it is narrowed."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(12, 12), nn.Tanh()) for _ in range(4))
        self.out = nn.Linear(12, 1)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.out(x)


def test_a_front_dominates_training_everything():
    """Few noisy examples of a task that differs from the old one by the last block alone."""
    torch.manual_seed(0)
    base, other = Net(), Net()
    other.load_state_dict(base.state_dict())
    other.blocks[3][0].weight.data += 0.2 * torch.randn(12, 12)
    x, held = torch.randn(24, 12), torch.randn(512, 12)
    y, wanted = (other(x) + 0.3 * torch.randn(24, 1)).detach(), other(held).detach()

    def rewards(mask):
        model = Net()
        model.load_state_dict(base.state_dict())
        with trained(model, {"*": f"full | memcontrol blocks={mask}"}, total=80) as t:
            optimizer = torch.optim.Adam(t.parameters(), lr=0.01)
            for _ in range(80):
                loss = (model(x) - y).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                t.revise(optimizer)
            with torch.no_grad():
                outside = (model(held) - wanted).square().mean().item()
                return outside, max(0.0, outside - (model(x) - y).square().mean().item())

    found = search(4, rewards, 9)
    whole = rewards("1111")
    assert any(all(mine < all_of_it for mine, all_of_it in zip(each, whole)) for _, each in found)


def test_masks_that_do_not_fit_are_told():
    for mask in ("01", "0000", "01a1"):
        with pytest.raises(SettingError, match="must be 4 digits"):
            trained(Net(), {"*": f"full | memcontrol blocks={mask}"})
    with pytest.raises(SettingError, match="two trials"):
        search(4, lambda mask: (0.0,), 1)


def test_every_mask_is_looked_at_once():
    asked = []
    found = search(3, lambda mask: asked.append(mask) or (mask.count("1"), -mask.count("1")), 50)
    assert sorted(asked) == sorted({format(each, "03b") for each in range(1, 8)}) and len(found) == 7
