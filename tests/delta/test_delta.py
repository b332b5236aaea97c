"""Deltas: what is changed, as a value."""

import json

import pytest
import torch

from modicum.core.errors import ModelError, SettingError
from modicum.delta import Delta
from modicum.delta.delta import digest
from modicum.forms import Base, Dense, Diagonal, LowRank, Product, Reflected, Sum
from modicum.train.trained import trained

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


@every_form
def test_what_was_learnt_on_a_cut_base_is_applied_to_the_whole(form, tmp_path):
    """LoRAM: rows and columns that the cut had left are changed, all others are as they were."""
    draw = chance(5)
    whole = torch.randn(9, 7, generator=draw)
    rows, columns = torch.tensor([1, 1, 0, 1, 0, 1, 1, 0, 1]).bool(), torch.tensor([0, 1, 1, 0, 1, 0, 1]).bool()
    cut = whole[rows][:, columns]
    small = Delta({"a": form(2)}).stamped(lambda name: cut)
    large = small.onto({"a": whole}.__getitem__, {"a": rows}, {"a": columns})
    large.save(tmp_path)
    for delta in (large, Delta.load(tmp_path)):
        made = delta.weight("a", whole)
        assert torch.equal(made[rows][:, columns], small.weight("a", cut))
        assert torch.equal(made[~rows], whole[~rows]) and torch.equal(made[:, ~columns], whole[:, ~columns])
        with pytest.raises(ModelError, match="another weight"):
            delta.weight("a", whole + 1)
    with pytest.raises(ModelError, match="the cut must leave"):
        small.onto({"a": whole}.__getitem__, {"a": rows}, {})


def test_a_small_model_trained_serves_the_large_one():
    """LoRAM's claim: what is learnt beside a model of half the inner width helps the whole one, without a step on it."""
    gains = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Tanh(), torch.nn.Linear(64, 4))
        x = torch.randn(512, 16)
        y = model(x).detach() + 0.3 * torch.tanh(x @ torch.randn(16, 4))
        kept = model[2].weight.detach().norm(dim=0).argsort(descending=True)[:32].sort().values
        rows = torch.zeros(64, dtype=torch.bool).index_fill(0, kept, True)
        small = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 4))
        small[0].weight.data, small[0].bias.data = model[0].weight.data[rows], model[0].bias.data[rows]
        small[2].weight.data, small[2].bias.data = model[2].weight.data[:, rows], model[2].bias.data
        with trained(small, "lora rank=4") as t:
            # The cut alone is a difference too, which the small one must not learn to make up for.
            aim = y - model(x).detach() + small(x).detach()
            optimizer = torch.optim.Adam(t.parameters(), lr=0.01)
            for _ in range(200):
                loss = (small(x) - aim).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            delta = t.delta()
        state = {name: value.detach().clone() for name, value in model.named_parameters()}
        before = (model(x) - y).square().mean().item()
        for name, made in delta.onto(state.__getitem__, {"0.weight": rows}, {"2.weight": rows}).on(state.__getitem__):
            model.get_parameter(name).data = made
        gains.append((model(x) - y).square().mean().item() / before)
    assert max(gains) < 0.9


def test_a_small_file_asks_for_no_large_matrix():
    """Two products whose inner sides are long: eight thousand numbers would be sixteen million entries on the way."""
    long = 1 << 13
    thin = lambda rows, columns: LowRank(torch.ones(rows, 1), torch.ones(1, columns))
    change = Product((thin(6, long), thin(long, long), thin(long, 4)))
    with pytest.raises(ModelError, match="asks for a matrix of 67,108,864 entries to change one of 24"):
        Delta({"a": Sum((Base(SHAPE, torch.float32, "a"), change))}).weight("a", weights()("a"))


def test_a_change_in_whole_numbers_is_within_half_a_level(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(16, 8, bias=False))
    read = lambda name: model.get_parameter(name).detach()
    with trained(model, "shift") as t:
        for parameter in t.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        delta, wanted = t.delta(), t.weight("0.weight").detach()
    change, sizes = wanted - read("0.weight"), {}
    for bits in (2, 4, 8):
        small = delta.quantized(bits, read)
        small.save(tmp_path / str(bits))
        ((_, made),) = Delta.load(tmp_path / str(bits)).on(read)
        level = 2 * change.abs().amax(1, keepdim=True) / (2**bits - 2)
        assert bool(((made - wanted).abs() <= 0.51 * level).all())
        sizes[bits] = small.nbytes
    assert sizes == {bits: 16 * 8 * bits // 8 + 8 * 4 for bits in (2, 4, 8)}
    with pytest.raises(SettingError, match="from 2 to 8"):
        delta.quantized(9, read)
