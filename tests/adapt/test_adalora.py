"""AdaLoRA's claim: at one budget of directions, weights that need more of them get more, and learn more than with equal ranks."""

import pytest
import torch
from torch import nn

from modicum.adapt import Adalora
from modicum.train.trained import trained


class Two(nn.Module):
    """Two weights side by side, each with outputs of its own."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(24, 24, bias=False), nn.Linear(24, 24, bias=False)

    def forward(self, x):
        return torch.cat([self.one(x), self.two(x)], -1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_directions_go_where_they_are_needed(seed):
    """The first weight needs seven directions and the second one, at four in the mean."""
    losses, ranks = {}, {}
    for method in ("lora rank=4", "adalora rank=4 first=2 every=5 strength=0.001"):
        torch.manual_seed(seed)
        model, x = Two(), torch.randn(512, 24)
        change = lambda rank: torch.randn(24, rank) @ torch.randn(rank, 24) / 24
        y = torch.cat([x @ (layer.weight.detach() + change(rank)).T for layer, rank in ((model.one, 7), (model.two, 1))], -1)
        with trained(model, {"*.weight": method}, total=400, seed=seed) as t:
            optimizer = torch.optim.Adam(t.parameters(), lr=0.02)
            for _ in range(400):
                loss = (model(x) - y).square().mean()
                penalty = t.penalty()
                optimizer.zero_grad()
                (loss if penalty is None else loss + penalty).backward()
                optimizer.step()
                t.revise(optimizer)
            losses[method] = loss.item()
            if method.startswith("adalora"):
                ranks = {name: len(place.state["values"]) for name, place in t.places.items()}
                assert t.count == sum(rank * 49 for rank in ranks.values())
    lora, mine = losses.values()
    assert sum(ranks.values()) == 8 and ranks["one.weight"] > 5
    assert mine < 0.5 * lora


def test_directions_fall_along_a_cubic():
    method = Adalora(rank=8, first=2.0, warmup=0.0, until=0.5)
    assert [method.left_at(share) for share in (0.0, 0.25, 0.5, 1.0)] == [16.0, 9.0, 8.0, 8.0]
