"""Every parametrization, against every promise it makes. A new one is held to them by existing."""

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from modicum.core.method import registry
from modicum.core.parametrization import Parametrization, Start, State, Step
from modicum.core.tensorfile import TensorFile
from modicum.delta import Delta
from modicum.delta.applying import apply, revert
from modicum.forms import Base, Dense, restore
from modicum.forms.form import Form
from modicum.testing import zoo
from modicum.train.scoring import scored
from modicum.train.trained import trained

# What each setting is tried with, where a method has it: small enough for small weights.
TRIED = {"rank": 3, "keep": 0.4, "every": 2}


def methods():
    for key, cls in registry().items():
        if issubclass(cls, Parametrization):
            names = {name: value for name, value in TRIED.items() if name in cls.__dataclass_fields__}
            yield pytest.param(cls(**names), id=key)


each = pytest.mark.parametrize("method", list(methods()))
SHAPE = (12, 8)


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


def begun(method, weight, *, moved=0.0, shape=SHAPE):
    common = method.common({"w": shape, "other": (24, 16)}, chance(1), 1)
    start = Start(
        unit="w", shape=shape, weight=weight, chance=chance(2), seed=2, common=common, base=Base(shape, torch.float32, "w"),
    )  # fmt: skip
    state = method.begin(start)
    draw = chance(3)
    return state.having({name: tensor + moved * torch.randn(tensor.shape, generator=draw) for name, tensor in state.trained.items()})


def weight():
    return torch.randn(SHAPE, generator=chance())


@each
def test_training_begins_at_the_base(method):
    base = weight()
    if method.relative:
        assert torch.equal(method.weight(base, begun(method, base), Step()), base) == method.begins_at_base


@each
def test_the_form_is_the_weight(method):
    base = weight()
    state = begun(method, base, moved=0.3)
    made, shared = method.form(state), {f"{method}: {part}": tensor for part, tensor in (state.common or State({})).trained.items()}
    assert torch.equal(made.on(Dense(base), shared).dense(), method.weight(base if method.relative else None, state, Step(1, 1)))
    again = restore(made.describe(), {name: tensor.clone() for name, tensor in made.tensors().items()}, known=True)
    assert torch.equal(again.on(Dense(base), shared).dense(), made.on(Dense(base), shared).dense())
    assert made.nbytes == sum(tensor.nbytes for tensor in made.tensors().values())
    assert made.nbytes < base.nbytes * 2


@each
def test_the_product_is_that_of_the_weight_and_so_are_its_gradients(method):
    base, x = weight(), torch.randn(5, SHAPE[1], generator=chance(4))
    state = begun(method, base, moved=0.3)
    found = []
    for way in ("weight", "product"):
        inputs = x.clone().requires_grad_()
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in state.trained.items()}
        mine = state.having(leaves)
        if way == "weight":
            made = inputs @ method.weight(base if method.relative else None, mine, Step()).T
        else:
            made = method.product(Dense(base) if method.relative else None, mine, inputs, Step())
            if made is None:
                pytest.skip("the weight is made")
        made.square().sum().backward()
        found.append([made, inputs.grad, *(leaf.grad for leaf in leaves.values())])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@each
def test_same_seed_same_bits(method):
    one, two = begun(method, weight()), begun(method, weight())
    assert all(torch.equal(one[name], two[name]) for name in one.trained)


@each
def test_what_is_trained_learns(method):
    torch.manual_seed(0)
    model, draw = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3)), chance(5)
    x, y = torch.randn(64, 8, generator=draw), torch.randint(3, (64,), generator=draw)
    before, answer = copy.deepcopy(model.state_dict()), model(x).detach()
    with trained(model, str(method), total=60) as t:
        scored(t, lambda: nn.functional.cross_entropy(model(x), y))
        optimizer = torch.optim.Adam(t.parameters(), lr=0.02)
        losses = []
        for _ in range(60):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            t.revise(optimizer)
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        delta, wanted = t.delta(), {name: t.weight(name).detach() for name in t.places}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(x), answer) and all(parameter.requires_grad for parameter in model.parameters())
    read = lambda name: torch.atleast_2d(model.get_parameter(name).detach())
    assert all(torch.equal(made, wanted[name]) for name, made in delta.on(read))
    assert all(torch.equal(made, read(name)) for name, made in delta.scaled(0.0).on(read))


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_delta_is_the_same(method, dtype, tmp_path):
    model = nn.Sequential(nn.Linear(8, 12, dtype=dtype))
    with trained(model, {"0.weight": str(method)}) as t:
        for parameter in t.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=chance(6))
        t.step = Step(1, 1)
        delta = t.delta("a model")
        wanted = t.weight("0.weight").detach()
    delta.save(tmp_path / "d")
    loaded = Delta.load(tmp_path / "d")
    assert wanted.dtype == dtype and loaded.base == "a model" and loaded.nbytes == delta.nbytes
    assert torch.equal(loaded.weight("0.weight", model[0].weight.detach()), wanted)


# Numbers that each trains of a weight of 12 by 8 under what it is tried with: N entries, K those of the share that is kept, R = 3.
N, K, R = 12 * 8, round(0.4 * 12 * 8), 3
FACTORS = R * (12 + 8)
COUNTS = {
    "lora": FACTORS, "lora_ga": FACTORS, "rslora": FACTORS, "pissa": FACTORS, "sorsa": FACTORS + R, "dora": FACTORS + 12,
    "adalora": 5 * (12 + 8) + 5, "vera": 12 + R, "bone": 12 // 2 * 2 * 2, "compacter": 2 * (12 + 8) + 4 * 4 * 4,
    "flora": FACTORS + R * R, "dsee": FACTORS + K, "apet": K, "fish": K, "topk": K, "sara": K, "ramt": K, "ether": 12, "ether_plus": 2 * (12 + 8),
    "ia3": 12, "full": N, "shift": N, "norms": N, "bitfit": N, "subspace": 1000, "low_rank": FACTORS, "held": FACTORS, "sltrain": FACTORS + K,
    "lsq": N + 12, "scales": 12, "phm": 4**3 + N // 4, "dsl": K, "spdf": K, "random": 64, "rigl": 64, "set": 64,
    "pv_tuning": 2**4 * 2 + 12, "pst": 2 * FACTORS + 12 + 8, "lapp": N + 1 + 12 + 8,
    "mpo": 16 * 6 + 6 * 6 + 6 * 6, "widenet": N + 24 * 16, "stable_rps": round(0.4 * (N + 24 * 16)), "shapeshifter": round(0.4 * (N + 24 * 16)) + 4,
}  # fmt: skip


@each
def test_as_many_numbers_are_trained_as_the_formula_says(method):
    """Those of the whole weight where nothing else is said; a random support of two layers is that of 64 entries for this one."""
    state = begun(method, weight())
    common = {} if state.common is None else state.common.trained
    assert sum(tensor.numel() for tensor in (*state.trained.values(), *common.values())) == COUNTS.get(method.key().split("/")[1], N)


@each
def test_what_is_trained_does_not_depend_on_the_order_of_the_units(method):
    found = []
    for names in (("one", "two"), ("two", "one")):
        model = nn.ModuleDict({name: nn.Linear(8, 12) for name in names})
        for name in names:
            nn.init.normal_(model[name].weight, generator=chance(len(name) + ord(name[0])))
        with trained(model, {"*.weight": str(method)}) as t:
            found.append(t.named_parameters())
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


@each
def test_the_optimizer_keeps_moments_of_what_is_trained_alone(method):
    model = nn.Sequential(nn.Linear(8, 12))
    with trained(model, {"0.weight": str(method)}, total=2) as t:
        x = torch.randn(4, 8, generator=chance(7))
        scored(t, lambda: model(x).square().sum())
        optimizer = torch.optim.AdamW(t.parameters())
        model(x).square().sum().backward()
        optimizer.step()
        t.revise(optimizer)
        kept = {parameter for parameter, moments in optimizer.state.items() if moments}
        assert kept <= set(t.parameters())
        assert sum(optimizer.state[parameter]["exp_avg"].numel() for parameter in kept) <= t.count


@each
def test_what_was_learnt_is_applied_and_taken_back_to_the_byte(method, checkpoint, tmp_path):
    folder, name = checkpoint
    model = LlamaForCausalLM.from_pretrained(folder)
    with trained(model, {name: str(method)}) as t:
        for parameter in t.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=chance(6))
        t.step = Step(1, 1)
        wanted, delta = t.weight(name).detach(), t.delta(str(folder))
    apply(folder, [delta], tmp_path / "out")
    with TensorFile(tmp_path / "out" / "model.safetensors") as file:
        assert torch.equal(file.read(name), wanted)
    revert(tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small checkpoint, and one of its weights."""
    folder = tmp_path_factory.mktemp("base")
    zoo.build("llama")[0].save_pretrained(folder)
    return folder, "model.layers.0.self_attn.q_proj.weight"


@each
@pytest.mark.parametrize("layer", ["convolution", "embedding", "recurrent", "borrowed"])
def test_every_kind_of_weight_is_trained_alike(method, layer):
    """Whoever reads the weight gets the one that is made, and its gradient reaches what is trained."""
    torch.manual_seed(0)
    model, name, x = _layer(layer)
    if method.treats_inputs:
        method = type(method)(inputs_in="float")
    with trained(model, {name: str(method)}) as t:
        for parameter in t.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=chance(6))
        unit, made = t.places[name].unit, t.weight(name).detach()
        found = model(x)
        found = found[0] if isinstance(found, tuple) else found
        found.square().sum().backward()
        assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in t.parameters()[:1])
    plain = copy.deepcopy(model)
    plain.get_parameter(name).data = unit.stored(made)
    if layer == "recurrent":
        plain.flatten_parameters()
    again = plain(x)
    torch.testing.assert_close(found, again[0] if isinstance(again, tuple) else again, rtol=1e-5, atol=1e-5)


class Borrowed(nn.Module):
    """Reads a layer's weight without calling the layer, as state-space models do."""

    def __init__(self):
        super().__init__()
        self.lent = nn.Linear(8, 12)

    def forward(self, x):
        return x @ self.lent.weight.T


def _layer(kind):
    if kind == "convolution":
        return nn.Sequential(nn.Conv2d(4, 6, 3)), "0.weight", torch.randn(2, 4, 6, 6)
    if kind == "embedding":
        return nn.Sequential(nn.Embedding(20, 8)), "0.weight", torch.arange(20).reshape(2, 10)
    if kind == "recurrent":
        return nn.GRU(8, 6), "weight_ih_l0", torch.randn(5, 2, 8)
    return Borrowed(), "lent.weight", torch.randn(3, 8)


def test_states_find_their_tensors():
    state = State({"a": torch.ones(1)}, {"b": torch.ones(2)}, State({}, {"c": torch.ones(3)}))
    assert [len(state[name]) for name in "abc"] == [1, 2, 3]
    with pytest.raises(KeyError):
        state["d"]


def test_forms_have_no_value_without_their_base():
    form: Form = Base((2, 3), torch.float32, "w")
    with pytest.raises(Exception, match="without the weight that it stands on"):
        form.dense()
