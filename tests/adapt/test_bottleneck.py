"""Bottleneck adapters' claim: thin layers behind each part of each block learn beside a frozen model, which they begin as."""

from types import SimpleNamespace

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


def test_behind_the_last_part_alone_or_beside_parts():
    model, batches = zoo.build("vit")
    model.eval()
    before, names = model(**batches[0]).logits, [name for name, _ in model.named_modules()]
    for option, places in (("bottleneck rank=2 behind=last", 1), ("bottleneck rank=2 parallel=true", 2)):
        with trained(model, option) as t:
            assert len(t.asides) == places * model.config.num_hidden_layers and all(each.place in names for each in t.asides)
            assert torch.equal(model(**batches[0]).logits, before)
            for each in t.asides:
                each.state["up"].data += 0.1
            other = model(**batches[0]).logits
            assert not torch.equal(other, before)
            if option.endswith("true"):  # the first attention's adapter sees what that is given
                each, seen = t.asides[0], []
                module = model.get_submodule(each.place)
                hook = module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
                model(**batches[0])
                hook.remove()
                state = each.state
                adds = each.method.adds(state, seen[0] * 0, SimpleNamespace(args=(seen[0],), named={}))
                down = torch.nn.functional.gelu(seen[0] @ state["down"].T + state["bias"])
                torch.testing.assert_close(adds, down @ state["up"].T)


def test_without_a_residual_it_takes_the_parts_place():
    model = nn.Sequential(nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2)]))
    block, x = model[0][0], torch.randn(3, 6)
    with trained(model, "bottleneck rank=2 residual=false") as t:
        state = t.asides[0].state
        wanted = torch.nn.functional.gelu(torch.tanh(nn.Linear.forward(block[0], x)) @ state["down"].T) @ state["up"].T
        torch.testing.assert_close(block(x), wanted)
