"""Layer tickets: the blocks that the loss feels least are left out before training, others of their kind alone."""

import pytest
import torch
from torch import nn

from modicum.core.errors import SettingError
from modicum.restrict import LayerTickets
from modicum.train.scoring import scored
from modicum.train.trained import trained


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(4))

    def forward(self, x):
        x = self.stem(x)
        for block, loud in zip(self.blocks, (1.0, 1e-3, 1.0, 1e-3)):
            x = x + loud * block(x).tanh()
        return self.head(x)


def test_what_is_felt_least_goes_and_the_rest_learns():
    torch.manual_seed(0)
    model, x, y = Residual(), torch.randn(32, 6), torch.randn(32, 3)
    plan = {"stem.*": "dense", "head.*": "dense", "blocks.*.weight": "layer_tickets keep=0.5"}
    with trained(model, plan, total=20, scratch=True) as t:
        scored(t, lambda: (model(x) - y).square().mean())
        optimizer = torch.optim.Adam(t.parameters(), lr=0.02)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            losses.append((model(x) - y).square().mean())
            losses[-1].backward()
            optimizer.step()
            t.revise(optimizer)
        forms = t.forms()
        assert [bool(t.weight(f"blocks.{place}.weight").any()) for place in range(4)] == [True, False, True, False]
    assert losses[-1] < losses[0]
    assert [forms[f"blocks.{place}.weight"].nbytes for place in range(4)] == [256, 0, 256, 0]


def test_blocks_of_another_kind_stay():
    shapes = {"b.0.first": (8, 8), "b.1.first": (8, 8), "b.2.first": (16, 8), "b.2.way": (16, 8), "b.3.first": (8, 8), "head": (3, 8)}
    gone = LayerTickets(keep=0.4).left_out(dict.fromkeys(shapes, 0.0) | {"b.1.first": 1.0}, shapes)
    assert gone == {"b.0.first", "b.3.first"}


@pytest.mark.parametrize("keep", [0.01, 1.0])
def test_one_block_stays_at_least_and_all_do_where_all_are_kept(keep):
    shapes = {f"b.{place}.first": (8, 8) for place in range(3)}
    assert len(LayerTickets(keep=keep).left_out(dict.fromkeys(shapes, 1.0), shapes)) == (2 if keep < 1 else 0)


def test_blocks_that_nobody_scored_are_told():
    with (
        trained(nn.Sequential(nn.Linear(8, 8)), "layer_tickets keep=0.5") as t,
        pytest.raises(SettingError, match="must see gradients before"),
    ):
        t.revise()
