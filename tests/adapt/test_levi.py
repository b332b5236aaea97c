"""LEVI's claim: heads on a frozen model's blocks and a small network learn a task whose cue the model's last stream has lost."""

import torch
from torch import nn

from modicum.train.trained import trained


class Net(nn.Module):
    """Tokens through blocks, the last of which forgets half of its stream; a class per row."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(12, 12), nn.Tanh()) for _ in range(3))
        self.blocks[2][0].weight.data[:, :6] = 0
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def test_what_the_last_block_forgot_is_learnt_beside_it():
    torch.manual_seed(0)
    model, x = Net(), torch.randn(256, 5, 12)
    y, losses = (x.mean(1)[:, 0] * 6).clamp(-1.4, 1.4).round().long() + 1, {}
    before = model(x).detach()
    for option in ({"head.*": "full"}, "levi rank=4"):
        with trained(model, option, total=150) as t:
            if option == "levi rank=4":
                assert torch.equal(model(x), before) and t.count == 4 * 12 + 2 * 16 + 3 + 3 * 3 * 16
            optimizer = torch.optim.Adam(t.parameters(), lr=0.02)
            for _ in range(150):
                loss = nn.functional.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            losses[str(option)] = loss.item()
    head, levi = losses.values()
    assert levi < 0.7 * head
    assert torch.equal(model(x), before)
