"""Every parameter is accounted for, and weights that their modules use in their own way are really treated."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import modicum
from modicum.data.splits import from_batches
from modicum.measure.settings import Settings
from modicum.measure.subject import Subject
from modicum.models.open import open_model
from modicum.sweep import output_gradients, rehearse
from modicum.testing import zoo

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")


class Recurrent(nn.Module):
    """Layers that keep their parameters in a list of their own, and cells."""

    def __init__(self):
        super().__init__()
        self.long = nn.LSTM(24, 16, 2, batch_first=True, bidirectional=True, proj_size=8)
        self.gated = nn.GRU(16, 16, batch_first=True)
        self.cell, self.head = nn.LSTMCell(16, 16), nn.Linear(16, 6)

    def forward(self, x):
        states = self.gated(self.long(x)[0])[0]
        return self.head(self.cell(states[:, -1])[0])


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = nn.MultiheadAttention(32, 4, batch_first=True)
        self.cross = nn.MultiheadAttention(32, 4, batch_first=True, kdim=16, vdim=16)

    def forward(self, x):
        return self.cross(self.own(x, x, x)[0], x[..., :16], x[..., 16:])[0]


class Bare(nn.Module):
    """A weight in a product, one in a bilinear form, a bag, and what is no weight: a table, a small matrix, a vector."""

    def __init__(self):
        super().__init__()
        self.table, self.weight = nn.Parameter(torch.randn(1, 8, 32)), nn.Parameter(torch.randn(32, 24) / 6)
        self.small, self.scale = nn.Parameter(torch.ones(4, 6)), nn.Parameter(torch.ones(24))
        self.pair, self.bag = nn.Bilinear(24, 24, 8), nn.EmbeddingBag(40, 24)

    def forward(self, x):
        hidden = (x + self.table) @ self.weight * self.scale
        return self.pair(hidden.mean(1), self.bag(torch.arange(8).view(2, 4)).sum(0).expand(len(x), 24)) + self.small.sum()


class Upward(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.out = nn.ConvTranspose1d(12, 16, 4, stride=2, padding=1), nn.ConvTranspose1d(16, 8, 4, stride=2, groups=2)

    def forward(self, x):
        return self.out(torch.relu(self.up(x)))


CASES = {
    "recurrent": (Recurrent, (4, 5, 24)),
    "packed": (Packed, (4, 5, 32)),
    "bare": (Bare, (4, 8, 32)),
    "upward": (Upward, (4, 12, 9)),
}


def _case(name):
    torch.manual_seed(0)
    maker, shape = CASES[name]
    return maker().eval(), [torch.randn(shape) for _ in range(5)]


@pytest.mark.parametrize("words", [{"method": "gptq bits=3 group=0"}, {"budget": "16bpw", "search_time": 0}], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_what_is_written_is_what_computes(name, words):
    model, data = _case(name)
    held = dict(model.named_parameters())
    result = modicum.fit(model, data=data, **words)
    assert all(value is held[name] and value.requires_grad for name, value in model.named_parameters())
    expected = copy.deepcopy(model)
    for other, value in result.model.named_parameters():
        expected.get_parameter(other).data.copy_(value)
    with torch.no_grad():
        assert torch.equal(result.model(data[0]), expected(data[0]))
        assert not torch.equal(result.model(data[0]), model(data[0]))
    weights = {name for name, value in model.named_parameters() if value.ndim > 1} - {"table", "small"}
    changed = {other for other in weights if not torch.equal(result.model.get_parameter(other), model.get_parameter(other))}
    assert changed == weights if "method" in words else changed
    told = result.receipt["coverage"]
    sizes = {name: value.nbytes for name, value in model.named_parameters()}
    assert {row["unit"] for row in told["untreated"]} == sizes.keys() - changed
    assert told["treated_bytes"] == sum(sizes[other] for other in changed)
    assert told["share_of_all"] == pytest.approx(told["treated_bytes"] / sum(sizes.values()))


def test_reasons_of_what_stays():
    model, data = _case("bare")
    told = modicum.fit(model, method="nearest bits=4", data=data).receipt["coverage"]
    reasons = {row["unit"]: row["reason"] for row in told["untreated"]}
    assert reasons == {"table": "table", "small": "small", "scale": "vector", "pair.bias": "vector"}
    sizes = {name: value.nbytes for name, value in model.named_parameters()}
    assert told["layer_bytes"] == sum(size for name, size in sizes.items() if reasons.get(name) != "vector")


def test_reasons_of_what_no_data_is_for():
    sites = {}
    for name in CASES:
        model, data = _case(name)
        opened = open_model(model)
        script = rehearse(opened, from_batches(data).calibration[0])
        sites |= {unit.name: script.data_free(unit) for unit in opened.units.values()}
    assert sites["long.weight_hr_l1_reverse"] == sites["cell.weight_hh"] == ""  # their inputs are known, though no call shows them
    assert sites["own.in_proj_weight"] == sites["cross.k_proj_weight"] == sites["own.out_proj.weight"] == ""
    assert sites["weight"] == sites["pair.weight"] == "used directly"
    assert sites["bag.weight"] == "embedding"
    assert (sites["up.weight"], sites["out.weight"]) == ("", "grouped convolution")


def test_errors_are_felt_through_the_weights():
    """The predicted divergence of small errors is the real one."""
    model, _ = _case("recurrent")
    with torch.no_grad():
        for value in model.parameters():
            value *= 4  # so that little is forgotten from place to place
    data = [torch.randn(1, 5, 24) for _ in range(160)]
    subject = Subject.open(model, Settings(), data)
    found = output_gradients(subject.model, subject.data.calibration, subject.script)
    for name in ("long.weight_hh_l0", "gated.weight_ih_l0", "long.weight_hr_l1"):
        weight, predicted, real = model.get_parameter(name), 0.0, 0.0
        for seed in range(6):
            error = 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
            predicted += 0.5 * float((found[name].weight * error.square()).sum())
            with torch.no_grad():
                before = [model(x) for x in data[:40]]
                weight += error
                pairs = [(b, model(x)) for b, x in zip(before, data[:40])]
                weight -= error
            real += sum(float((a - b).square().sum() / b.square().sum()) / 2 for b, a in pairs) / len(pairs)
        assert 0.6 < predicted / real < 1.6, (name, predicted, real)


def test_steps_on_inputs_that_were_not_seen_take_their_stand_in():
    from modicum.core.option import Option
    from modicum.core.unit import Site, Stats
    from modicum.forms import Dense

    model = open_model(nn.Linear(64, 8))
    (unit,) = model.units.values()
    stats = Stats()
    site, form = Site(unit.name, "unit", (unit,)), Dense(model.matrix(unit))
    made = Option.parse("gptq bits=4").apply(site, {unit.name: stats}, {unit.name: form}).forms[unit.name]
    same = Option.parse("hqq bits=4").apply(site, {unit.name: Stats()}, {unit.name: form}).forms[unit.name]
    assert torch.equal(made.dense(), same.dense())
    assert len(stats.events) == 1 and "hqq" in stats.events[0]


@pytest.mark.parametrize("method", ["float8", "nearest bits=4", "gptq bits=3", "hqq bits=4 symmetric=true", "svd keep=0.5", "wanda keep=0.5",
                                    "gptq bits=2 | eora rank=4"])  # fmt: skip
def test_doubles_and_rows_of_zeros(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).double().eval()
    with torch.no_grad():
        model[0].weight[3] = 0
    made = modicum.fit(model, method=method, data=[torch.randn(8, 64).double() for _ in range(5)]).model
    assert made[0].weight.dtype == torch.float64
    assert made[0].weight[3].abs().max() < 1e-12 and torch.isfinite(made[0].weight).all()
    assert F.cosine_similarity(made[0].weight.flatten(), model[0].weight.flatten(), 0) > 0.6


class Chained(nn.Module):
    """Matrices of a list whose product is made in one call."""

    def __init__(self):
        super().__init__()
        self.matrices = nn.ParameterList([torch.randn(16, 16) for _ in range(3)])

    def forward(self, x):
        return torch.linalg.multi_dot([x, *self.matrices])


def test_matrices_of_a_chain_multiply():
    model = open_model(Chained())
    rehearse(model, (torch.randn(2, 16),))
    assert list(model.units) == ["matrices.0", "matrices.1", "matrices.2"]


@pytest.mark.slow
def test_an_exported_graph_multiplies_too():
    layers = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    model = open_model(torch.export.export(layers, (torch.randn(4, 16),)).module())
    rehearse(model, (torch.randn(4, 16),))
    assert list(model.units) == ["0.weight", "2.weight"]


def test_what_grew_is_told():
    model, batches = zoo.build("mlp")
    told = [
        event for event in modicum.fit(model, data=batches, method="nearest bits=2 | eora rank=99").receipt["events"] if "bytes: " in event
    ]
    assert len(told) == 1 and "Choose an option that stores less there, or keep" in told[0]
    assert not any("bytes: " in event for event in modicum.fit(model, data=batches, method="nearest bits=4").receipt["events"])
