"""Inputs of gates and packed projections are those that the weights really multiply, step by step."""

from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import modicum
from modicum.core.method import Need
from modicum.forms import Dense
from modicum.models.open import open_model
from modicum.sweep import Sweep, rehearse

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
MODES = {"LSTM": nn.LSTM, "GRU": nn.GRU, "tanh": nn.RNN}


class Wrapped(nn.Module):
    """A recurrent layer between linear ones; of sequences of different lengths if it is told them."""

    def __init__(self, kind, **settings):
        super().__init__()
        self.before = nn.Linear(6, 6)
        self.layer = kind(6, 8, batch_first=True, **settings)

    def forward(self, x, lengths=None):
        x = self.before(x)
        if lengths is None:
            return self.layer(x)[0]
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.layer(packed)[0], batch_first=True)[0]


def naive(layer, sequences):
    """What each weight multiplies, one step of one sequence after the other: by name rows (steps, columns)."""
    met = defaultdict(list)
    for number in range(layer.num_layers):
        ways = ["", "_reverse"][: 1 + layer.bidirectional]
        outputs = [[one_way(layer, f"l{number}{way}", sequence, met) for sequence in sequences] for way in ways]
        sequences = [torch.cat(parts, -1) for parts in zip(*outputs)]
    return {name: torch.stack(rows) for name, rows in met.items()}


def one_way(layer, name, sequence, met):
    weight = {part: getattr(layer, f"{part}_{name}", None) for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")}
    hidden, cell, made = torch.zeros(layer.proj_size or layer.hidden_size), torch.zeros(layer.hidden_size), []
    for step in sequence.flip(0) if "reverse" in name else sequence:
        met[f"layer.weight_ih_{name}"].append(step)
        met[f"layer.weight_hh_{name}"].append(hidden)
        new, old = F.linear(step, weight["weight_ih"], weight["bias_ih"]), F.linear(hidden, weight["weight_hh"], weight["bias_hh"])
        if layer.mode == "LSTM":
            enter, keep, gate, leave = (new + old).chunk(4)
            cell = keep.sigmoid() * cell + enter.sigmoid() * gate.tanh()
            hidden = leave.sigmoid() * cell.tanh()
            if layer.proj_size:
                met[f"layer.weight_hr_{name}"].append(hidden)
                hidden = weight["weight_hr"] @ hidden
        elif layer.mode == "GRU":
            (reset, update, gate), (its_reset, its_update, its_gate) = new.chunk(3), old.chunk(3)
            keep = (update + its_update).sigmoid()
            hidden = (1 - keep) * (gate + (reset + its_reset).sigmoid() * its_gate).tanh() + keep * hidden
        else:
            hidden = (new + old).tanh()
        made.append(hidden)
    return torch.stack(made[::-1] if "reverse" in name else made)


def collected(model, batch, treat=lambda stage: None):
    """Statistics of every unit that a sweep over one batch shows."""
    opened = open_model(model)
    script, found = rehearse(opened, batch), {}

    def see(stage):
        found.update(stage.stats)
        return treat(stage)

    Sweep(opened, [batch], script, see, needs={Need.COVARIANCE}).finish()
    return found


def same(stats, rows):
    assert stats.count == len(rows)
    torch.testing.assert_close(stats.covariance, rows.T @ rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lengths", [None, [3, 5, 2]], ids=["padded", "packed"])
@pytest.mark.parametrize("settings", [{}, {"num_layers": 2, "bidirectional": True}], ids=["one", "two ways, two layers"])
@pytest.mark.parametrize("kind", MODES)
def test_gates_have_the_covariance_of_what_each_step_meets(kind, settings, lengths):
    torch.manual_seed(0)
    settings = settings | ({"proj_size": 4} if kind == "LSTM" and settings else {})
    model, x = Wrapped(MODES[kind], **settings).eval(), torch.randn(3, 5, 6)
    batch = {"x": x} | ({} if lengths is None else {"lengths": torch.tensor(lengths)})
    found = collected(model, batch)
    with torch.no_grad():
        expected = naive(model.layer, [row[: lengths[at] if lengths else 5] for at, row in enumerate(model.before(x))])
    assert expected.keys() == found.keys() - {"before.weight"}
    for name, rows in expected.items():
        same(found[name], rows)


def test_what_comes_later_meets_what_treated_weights_give():
    torch.manual_seed(0)
    model, x = Wrapped(nn.LSTM, num_layers=2).eval(), torch.randn(3, 5, 6)
    halved = lambda stage: {unit.name: Dense(model.get_parameter(unit.name).detach() / 2) for unit in stage.units if "ih" in unit.name}
    found, other = collected(model, {"x": x}, halved), Wrapped(nn.LSTM, num_layers=2).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for weight in (other.layer.weight_ih_l0, other.layer.weight_ih_l1):
            weight.div_(2)
        for name, rows in naive(other.layer, list(other.before(x))).items():
            same(found[name], rows)


class Attending(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.before, self.attention = nn.Linear(16, 16), nn.MultiheadAttention(16, 4, batch_first=True, **settings)

    def forward(self, x, keep, other=None):
        x = self.before(x)
        return self.attention(x, *([x, x] if other is None else [other, other]), key_padding_mask=keep == 0, need_weights=False)[0]


def attention_rows(model, x, keep, other):
    """Queries, keys, and what the output projection multiplies, of tokens that are none of the padding."""
    a, query = model.attention, model.before(x)
    key = query if other is None else other
    packed = a.in_proj_weight is not None
    q, k, v = a.in_proj_weight.chunk(3) if packed else (a.q_proj_weight, a.k_proj_weight, a.v_proj_weight)
    split = lambda value, weight, bias: F.linear(value, weight, bias).unflatten(-1, (4, 4)).transpose(1, 2)
    heads = [split(value, weight, bias) for value, weight, bias in zip((query, key, key), (q, k, v), a.in_proj_bias.chunk(3))]
    made = F.scaled_dot_product_attention(*heads, attn_mask=keep[:, None, None].bool())
    return query, key, made.transpose(1, 2).flatten(-2)


def test_an_attention_has_the_covariance_of_its_tokens_without_padding():
    torch.manual_seed(0)
    model, x, keep = Attending().eval(), torch.randn(2, 5, 16), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    found, real = collected(model, {"x": x, "keep": keep}), keep.bool()
    with torch.no_grad():
        query, _, made = attention_rows(model, x, keep, None)
    same(found["attention.in_proj_weight"], query[real])
    same(found["attention.out_proj.weight"], made[real])


@pytest.mark.parametrize("wide", [16, 12])
def test_an_attention_to_something_else_has_both_covariances(wide):
    torch.manual_seed(0)
    model = Attending(**({} if wide == 16 else {"kdim": wide, "vdim": wide})).eval()
    batch = {"x": torch.randn(2, 3, 16), "keep": torch.ones(2, 5), "other": torch.randn(2, 5, wide)}
    found = collected(model, batch)
    with torch.no_grad():
        query, key, made = (value.flatten(0, 1) for value in attention_rows(model, **batch))
    same(found["attention.out_proj.weight"], made)
    if wide == 16:
        same(found["attention.in_proj_weight"], torch.cat([query, key]))
        assert "several inputs" in found["attention.in_proj_weight"].events[0]
    else:
        same(found["attention.q_proj_weight"], query)
        assert found["attention.k_proj_weight"].covariance is found["attention.v_proj_weight"].covariance
        same(found["attention.k_proj_weight"], key)


def test_layers_in_a_list_are_measured_like_others():
    opened = open_model(nn.ModuleList([nn.LSTM(8, 8), nn.GRU(8, 8)]))
    assert not opened.blocks
    opened = open_model(Stacked().eval())
    script = rehearse(opened, {"x": torch.randn(4, 3, 8)})
    assert {script.data_free(unit) for unit in opened.units.values()} == {""}


class Stacked(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.LSTM(8, 8, batch_first=True), nn.GRU(8, 8, batch_first=True)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)[0]
        return x


class Own(nn.GRU):
    def forward(self, x):
        return super().forward(x.flip(1))


def test_what_has_a_forward_of_its_own_takes_options_without_data():
    torch.manual_seed(0)
    opened = open_model(nn.Sequential(Own(8, 8, batch_first=True)).eval())
    script = rehearse(opened, {"input": torch.randn(4, 3, 8)})
    assert {script.data_free(unit) for unit in opened.units.values()} == {"recurrent"}


CELLS = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "tanh": nn.RNNCell}


class Stepping(nn.Module):
    """A cell called for each step beside an attention called twice."""

    def __init__(self, kind):
        super().__init__()
        self.wide = nn.Linear(6, 8)
        self.cell, self.attention = kind(6, 8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x, z, keep):
        states, made = None, []
        for step in x.unbind(1):
            states = self.cell(step, states)
            made.append(states[0] if isinstance(states, tuple) else states)
        y = self.wide(z)
        for _ in range(2):
            y = y + self.attention(y, y, y, key_padding_mask=keep == 0, need_weights=False)[0]
        return y, torch.stack(made, 1)


def stepped(model, x, z, keep):
    """What each weight of it multiplies, call by call."""
    met, states = defaultdict(list), None
    for step in x.unbind(1):
        hidden = torch.zeros(len(x), 8) if states is None else states[0] if isinstance(states, tuple) else states
        met["cell.weight_ih"].append(step)
        met["cell.weight_hh"].append(hidden)
        states = model.cell(step, states)
    y, a, real = model.wide(z), model.attention, keep.bool()
    for _ in range(2):
        split = [part.unflatten(-1, (2, 4)).transpose(1, 2) for part in F.linear(y, a.in_proj_weight, a.in_proj_bias).chunk(3, -1)]
        heads = F.scaled_dot_product_attention(*split, attn_mask=real[:, None, None]).transpose(1, 2).flatten(-2)
        met["attention.in_proj_weight"].append(y[real])
        met["attention.out_proj.weight"].append(heads[real])
        y = y + a.out_proj(heads)
    return {name: torch.cat(rows) for name, rows in met.items()}


@pytest.mark.parametrize("kind", CELLS)
def test_of_what_is_called_several_times_all_calls_are_summed(kind):
    torch.manual_seed(0)
    model, keep = Stepping(CELLS[kind]).eval(), torch.tensor([[1] * 5, [1, 1, 1, 0, 0], [1] * 5])
    batch = {"x": torch.randn(3, 5, 6), "z": torch.randn(3, 5, 6), "keep": keep}
    found = collected(model, batch)
    with torch.no_grad():
        expected = stepped(model, **batch)
    assert expected.keys() == found.keys() - {"wide.weight"}
    for name, rows in expected.items():
        same(found[name], rows)
        assert "all calls" in found[name].events[0]


def test_a_shared_layer_of_several_rounds_is_treated_on_what_it_meets():
    torch.manual_seed(0)
    model, mix = Stepping(nn.LSTMCell).eval(), torch.randn(6, 6)
    data = [{"x": torch.randn(4, 6, 6) @ mix, "z": torch.randn(4, 6, 6), "keep": torch.ones(4, 6)} for _ in range(8)]
    lost = {}
    for method in ("nearest", "gptq"):
        result = modicum.fit(model, method=f"{method} bits=3 group=0", data=data, seed=0)
        with torch.no_grad():
            lost[method] = sum(float((one - other).square().sum()) for x in data for one, other in zip(result.model(**x), model(**x)))
    assert lost["gptq"] < 0.8 * lost["nearest"], lost
    assert any("all calls" in event for event in result.receipt["events"])


@pytest.mark.parametrize("name", ["gates", "attention"])
def test_gptq_on_them_is_nearer_than_rounding(name):
    torch.manual_seed(0)
    mix = torch.randn(6, 6) if name == "gates" else torch.randn(16, 4) @ torch.randn(4, 16) + 0.1 * torch.randn(16, 16)
    model = Wrapped(nn.LSTM).eval() if name == "gates" else nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    data = [torch.randn(4, 12, len(mix)) @ mix for _ in range(16)]
    lost = {}
    for method in ("nearest", "gptq"):
        made = modicum.fit(model, method=f"{method} bits=3 group=0", data=data, seed=0).model
        with torch.no_grad():
            lost[method] = sum(float((made(x) - model(x)).square().sum()) for x in data)
    assert lost["gptq"] < 0.8 * lost["nearest"], lost
