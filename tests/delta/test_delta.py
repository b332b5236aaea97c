"""Deltas: what is changed, as a value."""

import json

import pytest
import torch

from modicum.core.errors import ModelError, SettingError
from modicum.delta import Delta
from modicum.delta.delta import digest
from modicum.forms import Base, Dense, Diagonal, LowRank, Reflected, Sum

SHAPE = (6, 4)


def chance(seed):
    return torch.Generator().manual_seed(seed)


def weights(seed=0, dtype=torch.float32):
    found = {"a": torch.randn(SHAPE, generator=chance(seed)).to(dtype), "b": torch.randn(SHAPE, generator=chance(seed + 1)).to(dtype)}
    return found.__getitem__


def added(seed, name="a"):
    draw = chance(seed)
    return Sum((Base(SHAPE, torch.float32, name), LowRank(torch.randn(6, 2, generator=draw), torch.randn(2, 4, generator=draw))))


def scaled(seed, name="a"):
    return Diagonal(Base(SHAPE, torch.float32, name), rows=torch.rand(6, generator=chance(seed)) + 0.5)


def reflected(seed, name="a"):
    return Reflected(Base(SHAPE, torch.float32, name), torch.randn(2, 3, generator=chance(seed)))


every_form = pytest.mark.parametrize("form", [added, scaled, reflected])


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scale_acts_on_what_changes(form, dtype):
    read, delta = weights(dtype=dtype), Delta({"a": form(2)})
    change = delta.forms["a"].on(Dense(read("a"))).value().double() - read("a").double()
    assert torch.equal(delta.scaled(0).weight("a", read("a")), read("a"))
    assert torch.equal(delta.scaled(1).weight("a", read("a")), delta.weight("a", read("a")))
    assert torch.equal(delta.scaled(-0.5).weight("a", read("a")), (read("a").double() - 0.5 * change).to(dtype))
    assert torch.equal((0.5 * delta).weight("a", read("a")), (read("a").double() + 0.5 * change).to(dtype))


@pytest.mark.parametrize("one", [added, scaled, reflected])
@pytest.mark.parametrize("other", [added, scaled, reflected])
def test_a_sum_has_no_cross_terms(one, other):
    read = weights()
    deltas = Delta({"a": one(2)}), Delta({"a": other(3), "b": other(4, "b")})
    base = read("a").double()
    wanted = base + sum((delta.forms["a"].on(Dense(read("a"))).value().double() - base for delta in deltas), torch.zeros(()))
    assert torch.equal((deltas[0] + deltas[1]).weight("a", read("a")), wanted.float())
    assert torch.equal((deltas[0] + deltas[1]).weight("a", read("a")), (deltas[1] + deltas[0]).weight("a", read("a")))
    assert torch.equal((deltas[0] + deltas[1]).weight("b", read("b")), deltas[1].weight("b", read("b")))


def test_half_and_half_of_one_is_that_one():
    read, delta = weights(), Delta({"a": added(2)})
    torch.testing.assert_close((0.5 * delta + 0.5 * delta).weight("a", read("a")), delta.weight("a", read("a")), rtol=1e-7, atol=1e-7)


def test_another_base_is_an_error():
    delta = Delta({"a": added(2)}).stamped(weights())
    with pytest.raises(ModelError, match="a: the delta was made on another weight"):
        delta.weight("a", weights(7)("a"))
    with pytest.raises(ModelError, match="two"):
        delta + Delta({"a": added(3)}).stamped(weights(7))
    with pytest.raises(ModelError, match="shape"):
        Delta({"a": added(2)}).weight("a", torch.zeros(6, 5))


def test_ranks_entries_and_norms_of_a_change():
    read = weights()
    delta = Delta({"a": Dense(read("a") + torch.diag(torch.tensor([3.0, 2, 1, 0.5]))[[0, 1, 2, 3, 0, 0]].mul(torch.eye(6, 4)))})
    one = delta.ranked(1, read)
    assert torch.linalg.matrix_rank(one.weight("a", read("a")) - read("a"), atol=1e-4) == 1
    assert one.nbytes == 4 * 10
    two = delta.sparsified(2 / 24, read)
    changed = two.weight("a", read("a")) - read("a")
    assert torch.equal((changed != 0).nonzero(), torch.tensor([[0, 0], [1, 1]]))
    size, relative = delta.norms(read)["a"]
    assert size == pytest.approx((9 + 4 + 1 + 0.25) ** 0.5, rel=1e-5) and relative == pytest.approx(
        size / float(read("a").norm()), rel=1e-6
    )
    with pytest.raises(SettingError, match="keep: must be from 0 to 1"):
        delta.sparsified(2, read)


def test_a_saved_one_comes_back(tmp_path):
    read = weights()
    delta = (Delta({"a": added(2), "b": scaled(3, "b")}, notes=("made here",)) + 2.0 * Delta({"a": reflected(4)})).stamped(read, "x")
    delta.save(tmp_path)
    again = Delta.load(tmp_path)
    assert (again.base, again.notes, again.nbytes) == ("x", ("made here",), delta.nbytes)
    assert all(torch.equal(made, delta.weight(name, read(name))) for name, made in again.on(read))
    assert json.loads((tmp_path / "delta.json").read_text())["forms"]["a"]["parts"][0]["digest"] == digest(read("a"))


@pytest.mark.parametrize("spoil", ["part", "more", "less", "shape", "kind", "version", "json", "file"])
def test_a_delta_that_lies_is_told(tmp_path, spoil):
    Delta({"a": added(2), "b": scaled(3, "b")}).save(tmp_path)
    path = tmp_path / "delta.json"
    body = json.loads(path.read_text())
    if spoil == "part":
        body["forms"]["a"]["parts"].pop()
    elif spoil == "more":
        body["forms"].pop("b")
    elif spoil == "less":
        body["forms"]["c"] = body["forms"]["a"]
    elif spoil == "shape":
        body["forms"]["a"]["shape"] = [4, 6]
    elif spoil == "kind":
        body["forms"]["a"]["kind"] = "nothing"
    elif spoil == "version":
        body["version"] = 2
    path.write_text("{" if spoil == "json" else json.dumps(body))
    if spoil == "file":
        (tmp_path / "delta.safetensors").unlink()
    with pytest.raises(ModelError, match=r"delta|compressed weight"):
        Delta.load(tmp_path)
