"""Gradients by weight, sequence by sequence, are those of one plain backward of each."""

import pytest
import torch
from torch import nn

import modicum
from modicum.models.open import open_model
from modicum.sweep import rehearse
from modicum.sweep.slopes import weight_gradients
from modicum.testing import zoo


def plain(module, rows, parameter, loss):
    """Each row's gradient of a parameter."""
    found = []
    for row in rows:
        module.zero_grad()
        loss(module(**row) if isinstance(row, dict) else module(*row), row).backward()
        found.append(parameter.grad.clone())
    module.zero_grad()
    return torch.stack(found)


def next_tokens(output, row):
    return nn.functional.cross_entropy(output.logits[0, :-1], row["input_ids"][0, 1:])


def rows_of(batches):
    return [{name: value[i : i + 1] for name, value in batch.items()} for batch in batches for i in range(len(batch["input_ids"]))]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_equal_to_plain_backwards(name):
    module, batches = zoo.build(name)
    model = open_model(module)
    units = {unit for unit, one in model.units.items() if "1." in one.module}
    found = weight_gradients(model, batches, rehearse(model, batches[0]), units, window=3)
    rows = rows_of(batches)
    assert found.keys() == units
    for name, slopes in found.items():
        parameter = module.get_parameter(name)
        wanted = torch.stack([model.units[name].matrix(each) for each in plain(module, rows, parameter, next_tokens)])
        torch.testing.assert_close(slopes.total, wanted.sum(0), rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(slopes.square, wanted.square().sum(0), rtol=1e-3, atol=1e-8)
        last = {number % 3: each for number, each in enumerate(wanted)}
        torch.testing.assert_close(slopes.window.float(), torch.stack([last[i] for i in range(3)]), rtol=1e-2, atol=1e-5)
        assert slopes.count == len(rows)


def test_experts_and_convolutions_have_theirs():
    module, batches = zoo.build("qwen3_moe")
    model = open_model(module)
    script = rehearse(model, batches[0])
    experts = {name for name, unit in model.units.items() if unit.kind == "expert"}
    found = weight_gradients(model, batches[:1], script, experts)
    stack = next(unit.parameter for unit in model.units.values() if unit.kind == "expert")
    wanted = plain(module, rows_of(batches[:1]), module.get_parameter(stack), next_tokens)
    for name in (name for name in found if model.units[name].parameter == stack):
        own = torch.stack([model.units[name].matrix(each) for each in wanted])
        torch.testing.assert_close(found[name].square, own.square().sum(0), rtol=1e-3, atol=1e-8)

    images = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.LazyLinear(5))
    pictures = [(torch.randn(4, 3, 9, 9),)]
    images(*pictures[0])
    model = open_model(images)
    found = weight_gradients(model, pictures, rehearse(model, pictures[0]), set(model.units), drawn=True)
    assert found["0.weight"].square.shape == (8, 27) and found["0.weight"].count == 4
    assert all(bool(one.square.any()) for one in found.values())


def test_a_convolution_is_that_of_a_plain_backward():
    module, image = nn.Conv2d(3, 4, 3, stride=2, padding=1, dilation=2), torch.randn(1, 3, 11, 11)
    model = open_model(nn.Sequential(module))
    found = weight_gradients(model, [(image,)], rehearse(model, (image,)), {"0.weight"}, seed=5)["0.weight"]
    seen = module(image)
    signs = torch.randint(0, 2, (1, seen.numel()), generator=torch.Generator().manual_seed(5)) * 2 - 1
    (seen.flatten() * signs.view(-1) / seen.detach().norm()).sum().backward()
    torch.testing.assert_close(found.total, module.weight.grad.reshape(4, -1), rtol=1e-4, atol=1e-6)


def test_a_run_takes_them_once_and_tells_what_has_none():
    module, batches = zoo.build("llama")
    receipt = modicum.fit(module, data=batches, method="gblm keep=0.5", target="modicum", gradient_samples=2, allow_broken=True).receipt
    assert "gradients by weight" in receipt["stages"]
    assert not any("gradients" in event for event in receipt["events"])
    module, batches = zoo.build("cnn")
    receipt = modicum.fit(module, data=batches, method="mfac keep=0.5", target="modicum", gradient_samples=2, allow_broken=True).receipt
    assert receipt["stages"]["gradients by weight"]["seconds"] > 0
