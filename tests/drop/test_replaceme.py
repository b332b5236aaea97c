"""ReplaceMe: a linear map, folded into the projection before, stands in for the span."""

import pytest
import torch
from torch import nn

import modicum
from modicum.core.errors import ModelError
from modicum.drop import Replaceme
from modicum.models.open import open_model
from modicum.sweep import rehearse
from modicum.sweep.spill import SpillPool
from modicum.testing import zoo

BATCHES = [{"input_ids": torch.randint(0, 256, (8, 32), generator=torch.Generator().manual_seed(seed))} for seed in range(6)]


def test_better_than_plain_dropping_with_no_byte_more():
    module, _ = zoo.build("llama")
    plain = modicum.fit(module, method="blocks count=1", target="modicum", data=BATCHES).receipt
    folded = modicum.fit(module, method="replaceme count=1", target="modicum", data=BATCHES).receipt
    assert folded["quality"]["mean"] < plain["quality"]["mean"]
    assert folded["bytes"]["actual"] == plain["bytes"]["actual"]


def test_the_map_solves_its_least_squares():
    module, _ = zoo.build("llama")
    model = open_model(module)
    change = Replaceme(count=1, damping=1e-6).reshape(model, rehearse(model, BATCHES[0]), BATCHES, SpillPool(None))
    (name,) = change.forms
    before = int(name.split(".")[2])
    outputs = {}
    hooks = [
        module.model.layers[before].mlp.down_proj.register_forward_hook(
            lambda m, a, out: outputs.setdefault("M", []).append(out.flatten(0, -2))
        ),
        module.model.layers[before].register_forward_hook(lambda m, a, out: outputs.setdefault("X", []).append(out.flatten(0, -2))),
        module.model.layers[before + 1].register_forward_hook(lambda m, a, out: outputs.setdefault("L", []).append(out.flatten(0, -2))),
    ]
    with torch.no_grad():
        for batch in BATCHES:
            module(**batch)
    for hook in hooks:
        hook.remove()
    m, x, after = (torch.cat(outputs[key]).double() for key in "MXL")
    transform = torch.linalg.lstsq(m, after - (x - m)).solution
    expected = transform.T @ module.model.layers[before].mlp.down_proj.weight.double()
    torch.testing.assert_close(change.forms[name].dense().double(), expected, rtol=1e-2, atol=1e-3)


def test_reduces_to_plain_drop_under_a_heavy_ridge():
    module, _ = zoo.build("llama")
    model = open_model(module)
    change = Replaceme(count=1, damping=100.0).reshape(model, rehearse(model, BATCHES[0]), BATCHES, SpillPool(None))
    (name,) = change.forms
    torch.testing.assert_close(change.forms[name].dense(), model.matrix(model.units[name]), rtol=0.1, atol=0.02)


def test_a_norm_in_between_is_refused():
    module, batches = zoo.build("gemma2")
    with pytest.raises(ModelError, match="Use blocks instead"):
        modicum.fit(module, method="replaceme count=1", target="modicum", data=batches)


def test_padding_stands_in_for_nothing():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 16)
            self.layers = nn.ModuleList([Step() for _ in range(4)])

        def forward(self, x, padding):
            x = x + self.mix(x, x, x, key_padding_mask=padding, need_weights=False)[0]
            for layer in self.layers:
                x = layer(x)
            return self.head(x)

    padding = torch.arange(6) >= torch.tensor([[6], [3]])
    batches = [(torch.randn(2, 6, 16), padding) for _ in range(3)]
    model = open_model(Net().eval())
    script = rehearse(model, batches[0], batches[1:])
    found = Replaceme(count=1).reshape(model, script, batches, SpillPool(None))
    assert script.masks and len(found.dropped) == 1


class Step(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))
