"""SLTrain's claim: at equal numbers, a product and sparse entries hold what a product alone cannot."""

import torch
from torch import nn

from modicum.train.trained import trained


def test_what_lies_at_its_places_is_found_beside_the_product():
    """A target of full rank: two directions, and entries at the places that the seed gives."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1024, 32, generator=draw)
    with trained(nn.Sequential(nn.Linear(32, 32)), "sltrain rank=2 keep=0.25") as t:
        places = t.places["0.weight"].state["places"]
    target = torch.randn(32, 2, generator=draw) @ torch.randn(2, 32, generator=draw)
    target.view(-1)[places] += 3 * torch.randn(len(places), generator=draw)
    errors = {}
    for text in ("sltrain rank=6 keep=0.0", "sltrain rank=2 keep=0.25"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 32, bias=False))
        with trained(model, text, scratch=True) as t:
            assert t.count == 384
            optimizer = torch.optim.Adam(t.parameters(), lr=0.05)
            for _ in range(400):
                loss = (model(x) - x @ target.T).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            errors[text] = loss.item()
    low, both = errors.values()
    assert both < 0.01 * low


def test_the_file_holds_no_places():
    with trained(nn.Sequential(nn.Linear(32, 32)), "sltrain rank=2 keep=0.25") as t:
        assert t.forms()["0.weight"].nbytes == 4 * t.count
