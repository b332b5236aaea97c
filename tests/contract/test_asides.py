"""Every aside, against every promise it makes. A new one is held to them by existing."""

import copy
import json

import pytest
import torch

from modicum.core.aside import Aside
from modicum.core.errors import ModelError
from modicum.core.method import registry
from modicum.delta import Delta
from modicum.delta.applying import apply
from modicum.testing import zoo
from modicum.train.changed import changed
from modicum.train.trained import trained

TRIED = {"rank": 2, "tokens": 3, "features": 8}


def methods():
    for key, cls in registry().items():
        if issubclass(cls, Aside):
            names = {name: value for name, value in TRIED.items() if name in cls.__dataclass_fields__}
            yield pytest.param(str(cls(**names)), id=key)


each = pytest.mark.parametrize("option", list(methods()))
IDS = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(0))
PICTURES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def fitting(option):
    """A model that it may stand beside, of text where it can, and what that is given."""
    model, _ = zoo.build("llama")
    try:
        trained(model, option)
    except ModelError:
        model, batches = zoo.build("vit")
        return model.eval(), PICTURES[..., : batches[0]["pixel_values"].shape[-2], : batches[0]["pixel_values"].shape[-1]]
    return model.eval(), IDS


def made(option):
    """A model, what it gives with an aside that has been moved, and the delta of it."""
    model, given = fitting(option)
    draw = torch.Generator().manual_seed(1)
    with trained(model, option, seed=5) as t, torch.no_grad():
        for parameter in t.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
        return model, model(given).logits, t.delta("a model")


@each
def test_a_model_computes_with_it_and_is_afterwards_what_it_was(option):
    model, given = fitting(option)
    before, state = model(given).logits, copy.deepcopy(model.state_dict())
    hooks = {name: set(vars(module)) for name, module in model.named_modules()}
    _, inside, _ = made(option)
    assert inside.shape == before.shape and not torch.equal(inside, before)
    with trained(model, option) as t:
        model(given).logits.square().mean().backward()
        assert all(parameter.grad is not None for parameter in t.parameters())
    assert torch.equal(model(given).logits, before) and hooks == {name: set(vars(module)) for name, module in model.named_modules()}
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@each
def test_rows_do_not_meet(option):
    model, given = fitting(option)
    with trained(model, option), torch.no_grad():
        torch.testing.assert_close(model(given).logits[1:], model(given[1:]).logits, rtol=1e-4, atol=1e-5)


@each
def test_a_saved_delta_computes_the_same(option, tmp_path):
    model, inside, delta = made(option)
    delta.save(tmp_path / "d")
    loaded = Delta.load(tmp_path / "d")
    assert loaded.nbytes == delta.nbytes == sum(aside.nbytes for aside in delta.asides)
    with changed(model, loaded), torch.no_grad():
        assert torch.equal(model(fitting(option)[1]).logits, inside)
    other, _ = fitting(option)
    for parameter in other.parameters():
        parameter.data += 1
    with pytest.raises(ModelError, match="made beside other weights"), changed(other, loaded):
        pass


@each
def test_what_no_weight_can_hold_is_not_merged(option, tmp_path):
    _, _, delta = made(option)
    if delta.asides[0].aside.mergeable:
        pytest.skip("it can be merged")
    with pytest.raises(ModelError, match="cannot be merged into a checkpoint"):
        apply("demo", [delta], tmp_path / "out")
    with pytest.raises(ModelError, match="cannot be scaled"):
        delta.scaled(0.5)
    assert not delta.without_asides().asides and not (tmp_path / "out").exists()


def test_two_at_one_place_do_not_add():
    _, _, one = made("prompt tokens=2")
    _, _, other = made("bottleneck rank=1")
    with pytest.raises(ModelError, match="beside the whole model"):
        one + one
    assert len((one + other).asides) == len(one.asides) + len(other.asides)


def test_tensors_that_are_not_the_written_ones_are_told(tmp_path):
    _, _, delta = made("prompt tokens=2")
    delta.save(tmp_path)
    body = json.loads((tmp_path / "delta.json").read_text())
    body["asides"][0]["digest"] = "0" * 64
    (tmp_path / "delta.json").write_text(json.dumps(body))
    with pytest.raises(ModelError, match="must be as it was written"):
        Delta.load(tmp_path)
    body["asides"][0]["method"] = "nothing at all"
    (tmp_path / "delta.json").write_text(json.dumps(body))
    with pytest.raises(ModelError):
        Delta.load(tmp_path)
