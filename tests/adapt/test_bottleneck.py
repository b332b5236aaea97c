"""Bottleneck adapters' claim: thin layers behind each part of each block learn beside a frozen model, which they begin as."""

import pytest
import torch
from torch import nn

from modicum.core.errors import SettingError
from modicum.testing import zoo
from modicum.train import Loop
from modicum.train.loop import train
from modicum.train.trained import trained


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_parts_of_blocks_get_layers_that_learn(name):
    model, _ = zoo.build(name)
    draw = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(3, 12, (1, 16), generator=draw)} for _ in range(4)]
    before = model.eval()(**rows[0]).logits
    with trained(model, "bottleneck rank=2", total=60) as t:
        assert torch.equal(model(**rows[0]).logits, before)
        wide, places = model.config.hidden_size, [each.place for each in t.asides]
        assert len(places) == 2 * model.config.num_hidden_layers and t.count == len(places) * 2 * (2 * wide + 1)
        losses = train(model, t, rows, Loop(steps=60, batch=4, rate=0.02))
    assert losses[-1] < 0.9 * losses[0] and torch.equal(model(**rows[0]).logits, before)


def test_a_pattern_says_which_places():
    model, _ = zoo.build("llama")
    with trained(model, {"*.mlp": "bottleneck rank=2"}) as t:
        assert all(each.place.endswith(".mlp") for each in t.asides)
    with pytest.raises(SettingError, match="must match a place of bottleneck"):
        trained(model, {"*.nowhere": "bottleneck"})


def test_a_block_of_one_layer_is_a_place_itself():
    model = nn.Sequential(nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2)]))
    with trained(model, "bottleneck rank=1") as t:
        assert [each.place for each in t.asides] == ["0.0", "0.1"]
