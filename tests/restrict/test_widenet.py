"""WideNet: blocks share their layers, and what is shared learns for all of them."""

import torch
from torch import nn

from modicum.restrict import Widenet
from modicum.train.trained import trained


class Deep(nn.Module):
    def __init__(self, depth=4, width=8):
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"norm": nn.LayerNorm(width), "up": nn.Linear(width, width)}) for _ in range(depth))

    def forward(self, x):
        for block in self.blocks:
            x = x + block["up"](block["norm"](x)).tanh()
        return x


def test_layers_of_one_place_are_one_weight_and_norms_are_not():
    torch.manual_seed(0)
    model, x, y = Deep(), torch.randn(32, 8), torch.randn(32, 8)
    names = [f"blocks.{place}.up.weight" for place in range(4)]
    for sets, different in ((1, 1), (2, 2), (4, 4), (9, 4)):
        with trained(model, dict.fromkeys(names, f"widenet sets={sets}") | {"blocks.*.norm.weight": "dense"}, scratch=True) as t:
            assert t.count == 64 * different + 4 * 8
            optimizer = torch.optim.Adam(t.parameters(), lr=0.02)
            losses = []
            for _ in range(20):
                optimizer.zero_grad()
                losses.append((model(x) - y).square().mean())
                losses[-1].backward()
                optimizer.step()
            made = [t.weight(name).detach() for name in names]
            norms = [t.weight(f"blocks.{place}.norm.weight").detach() for place in range(4)]
        assert losses[-1] < losses[0]
        assert len({tuple(weight.flatten().tolist()) for weight in made}) == different and torch.equal(made[0], made[1]) == (sets < 4)
        assert len({tuple(norm.flatten().tolist()) for norm in norms}) == 4


def test_shapes_and_places_are_told_apart():
    shapes = {"l.0.q": (4, 4), "l.1.q": (4, 4), "l.0.k": (4, 4), "l.1.k": (2, 4), "head": (3, 4)}
    assert Widenet().common(shapes, torch.Generator().manual_seed(0), 0)["pool"].numel() == 16 + 16 + 8 + 12
