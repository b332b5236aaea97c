"""Connected adapters' claim: a gradient reaches the first adapters beside the model, where the model itself lets none through."""

import torch
from torch import nn

from modicum.train.trained import trained


class Deaf(nn.Module):
    """Blocks that pass on no gradient to what lies before them, as far as the model goes."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x.detach())
        return x


def test_the_first_adapter_feels_the_loss_through_the_others():
    torch.manual_seed(0)
    model, x = Deaf(), torch.randn(4, 8)
    felt = {}
    for option in ("bottleneck rank=2", "connected rank=2"):
        with trained(model, option) as t:
            for parameter in t.parameters():
                parameter.data += 0.1
            model(x).square().sum().backward()
            felt[option] = t.asides[0].state["down"].grad
    assert felt["bottleneck rank=2"] is None and float(felt["connected rank=2"].abs().sum()) > 0


def test_what_is_handed_on_ends_with_the_call():
    torch.manual_seed(0)
    model, x = Deaf(), torch.randn(4, 8)
    with trained(model, "connected rank=2") as t, torch.no_grad():
        for parameter in t.parameters():
            parameter += 0.1
        assert torch.equal(model(x), model(x))
