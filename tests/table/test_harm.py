"""Harm in its several currencies: on a trained classifier half the form is the real KL, each kind within what it leaves out."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import modicum
from modicum.core.unit import Stats, Unit
from modicum.forms import Activated, Dense
from modicum.forms.activated import Rounding
from modicum.models.open import open_model
from modicum.sweep import Sensitivity, output_gradients, rehearse
from modicum.sweep.curvature import fisher_traces
from modicum.table.harm import HARMS, harm, of_inputs, output_error, rows

LAYERS = ("first", "second")


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 24), nn.Linear(24, 6)

    def forward(self, x):
        return SimpleNamespace(logits=self.second(torch.tanh(self.first(x))))


class Trained:
    """A classifier trained on a teacher's labels over correlated inputs, its statistics, and the real KL of a weight error."""

    def __init__(self):
        torch.manual_seed(0)
        self.x = torch.randn(3000, 8) @ torch.randn(8, 16) * 0.6 + 0.3 * torch.randn(3000, 16)
        teacher = torch.tanh(self.x @ torch.randn(16, 12) * 0.3) @ torch.randn(12, 6)
        labels = torch.multinomial(teacher.softmax(-1), 1)[:, 0]
        self.module = Classifier()
        optimizer = torch.optim.Adam(self.module.parameters(), 1e-2)
        for _ in range(200):
            optimizer.zero_grad()
            nn.functional.cross_entropy(self.module(self.x).logits, labels).backward()
            optimizer.step()
        optimizer.zero_grad()
        self.model = open_model(self.module)
        batch = {"x": self.x}
        self.sensitivities = output_gradients(self.model, [batch] * 4, rehearse(self.model, batch), covariance=True)
        with torch.no_grad():
            self.inputs = {"first": self.x, "second": torch.tanh(self.module.first(self.x))}

    def stats(self, layer):
        x = self.inputs[layer]
        return Stats(count=len(x), square=x.square().sum(0), covariance=x.T @ x)

    @torch.no_grad()
    def real(self, layer, error):
        weight, before = self.module.get_submodule(layer).weight, self.module(self.x).logits.double().log_softmax(-1)
        weight += error
        after = self.module(self.x).logits.double().log_softmax(-1)
        weight -= error
        return float((before.exp() * (before - after)).sum(-1).mean())

    def predicted(self, kind, layer, error):
        name = f"{layer}.weight"
        weight = self.model.matrix(self.model.units[name]).detach()
        return HARMS[kind](self.model.units[name], error, self.stats(layer), self.sensitivities[name], weight)

    def ratio(self, kind, layer, errors):
        """Predicted harm over real KL, each summed over the errors."""
        return sum(self.predicted(kind, layer, e) for e in errors) / sum(self.real(layer, e) for e in errors)


@pytest.fixture(scope="module")
def trained():
    return Trained()


def white(trained, layer, count=40, size=0.01):
    shape = trained.module.get_submodule(layer).weight.shape
    return [size * torch.randn(shape) for _ in range(count)]


@pytest.mark.parametrize(("layer", "within"), [("first", 1.35), ("second", 1.2)])
def test_white_errors_cost_what_every_kind_in_nats_predicts(trained, layer, within):
    """Large inputs saturate the first layer's units, so that gradients and inputs are not independent there."""
    errors = white(trained, layer)
    for kind in ("covariance", "fisher"):
        assert 1 / 1.2 < trained.ratio(kind, layer, errors) < within
    assert 0.9 < trained.ratio("trace", layer, errors) < 1.1, "exact in expectation: one position an input"


def test_the_hessian_predicts_as_the_trace_does(trained):
    traces = fisher_traces(trained.model, [{"x": part} for part in trained.x.split(50)])
    for layer in LAYERS:
        name = f"{layer}.weight"
        sensitivity = Sensitivity(torch.ones(0), None, hessian=traces[name])
        error = white(trained, layer, 1)[0]
        found = HARMS["hessian"](trained.model.units[name], error, Stats(), sensitivity, error)
        assert found == pytest.approx(trained.predicted("trace", layer, error), rel=0.1)


def test_an_error_that_no_output_feels_is_free_with_the_covariance_alone(trained):
    """All logits moved alike leave the distribution as it is; the diagonal cannot see that they go together."""
    error = 0.01 * torch.ones(6, 1) @ torch.randn(1, 24)
    assert trained.real("second", error) < 1e-9
    assert trained.predicted("covariance", "second", error) < 1e-8
    assert trained.predicted("fisher", "second", error) > 1e-5


@pytest.mark.parametrize("layer", LAYERS)
def test_low_rank_errors_need_the_covariance(trained, layer):
    """Of random errors of rank one, whose rows go together: each on its own, not in the mean."""
    shape = trained.module.get_submodule(layer).weight.shape
    errors = [0.02 * torch.randn(shape[0], 1) @ torch.randn(1, shape[1]) for _ in range(60)]
    real = [trained.real(layer, error) for error in errors]
    missed = {
        kind: math.sqrt(sum(math.log(trained.predicted(kind, layer, e) / r) ** 2 for e, r in zip(errors, real)) / len(errors))
        for kind in ("covariance", "fisher", "trace")
    }
    assert missed["covariance"] < 0.25
    assert missed["covariance"] < 0.7 * missed["fisher"] < 0.7 * missed["trace"]


@pytest.mark.parametrize("kind", ["fisher", "covariance", "error"])
def test_covariance_of_inputs_matters_where_columns_go_together(trained, kind):
    """An error across the inputs' common directions costs little, and the kinds that hold their covariance know it."""
    values, vectors = torch.linalg.eigh(trained.stats("first").covariance)
    row = torch.randn(24, 1)
    quiet, loud = (0.01 * row @ vectors[:, [column]].T for column in (0, -1))
    assert trained.predicted(kind, "first", quiet) < 0.05 * trained.predicted(kind, "first", loud)
    assert trained.real("first", quiet) < 0.05 * trained.real("first", loud)
    assert trained.predicted("trace", "first", quiet) == pytest.approx(trained.predicted("trace", "first", loud), rel=1e-3)


# On made-up statistics


def linear(count=7, columns=5):
    return Unit("a.weight", "a.weight", "a", "linear", (count, columns), (count, columns), torch.float32)


def embedding(entries=7, width=5, aliases=()):
    return Unit("e.weight", "e.weight", "e", "embedding", (entries, width), (entries, width), torch.float32, aliases=aliases)


def felt(count, columns=5, **more):
    gradients = torch.randn(30, count)
    covariance = gradients.T @ gradients / 30
    return Sensitivity(covariance.diagonal().clone(), torch.rand(columns), covariance=covariance, trace=3.0, hessian=2.0, **more)


def made(covariance=True):
    x = torch.randn(40, 5) @ torch.randn(5, 5)
    return x, Stats(count=40, square=x.square().sum(0), covariance=x.T @ x if covariance else None)


def test_covariance_equals_its_definition():
    unit, sensitivity, (x, stats) = linear(), felt(7), made()
    error = torch.randn(7, 5)
    moved = x @ error.T
    naive = 0.5 * (moved @ sensitivity.covariance * moved).sum(1).mean()
    assert HARMS["covariance"](unit, error, stats, sensitivity, error) == pytest.approx(float(naive), rel=1e-4)


@pytest.mark.parametrize("known", ["squares", "sensitivity"])
def test_covariance_with_the_inputs_squares_alone(known):
    unit, sensitivity, (_, stats) = linear(), felt(7), made(covariance=False)
    square = stats.square / stats.count if known == "squares" else sensitivity.square
    error = torch.randn(7, 5)
    naive = 0.5 * torch.einsum("rs,rc,c,sc->", sensitivity.covariance, error, square, error)
    found = HARMS["covariance"](unit, error, stats if known == "squares" else Stats(), sensitivity, error)
    assert found == pytest.approx(float(naive), rel=1e-4)


@pytest.mark.parametrize("unit", [linear(), embedding()], ids=["linear", "embedding"])
def test_covariance_reduces_to_fisher_where_it_is_diagonal(unit):
    sensitivity, (_, stats) = felt(unit.shape[0] if unit.kind == "linear" else unit.shape[1]), made()
    sensitivity = Sensitivity(sensitivity.gradient, sensitivity.square, covariance=sensitivity.gradient.diag())
    error = torch.randn(unit.shape)
    kinds = [HARMS[kind](unit, error, stats, sensitivity, error) for kind in ("covariance", "fisher")]
    assert kinds[0] == pytest.approx(kinds[1], rel=1e-5) and not stats.events


def test_a_missing_covariance_is_an_event():
    unit, (_, stats) = linear(), made()
    sensitivity, error = Sensitivity(torch.rand(7), None), torch.randn(7, 5)
    assert HARMS["covariance"](unit, error, stats, sensitivity, error) == HARMS["fisher"](unit, error, stats, sensitivity, error)
    assert stats.events == ["no covariance of output gradients was collected: its harm takes their diagonal"]


def test_traces_are_spread_over_all_weights():
    unit, sensitivity, error = linear(), felt(7), torch.randn(7, 5)
    square = float(error.square().sum())
    assert HARMS["trace"](unit, error, Stats(), sensitivity, error) == pytest.approx(0.5 * 3.0 / 35 * square)
    assert HARMS["hessian"](unit, error, Stats(), sensitivity, error) == pytest.approx(0.5 * 2.0 / 35 * square)


def test_a_negative_estimate_is_an_event_and_no_harm():
    stats, error = Stats(), torch.randn(7, 5)
    assert HARMS["hessian"](linear(), error, stats, Sensitivity(torch.rand(7), None, hessian=-0.5), error) is None
    assert stats.events == ["the estimate of its Hessian's trace is negative (-0.5): more probes or tokens are needed"]


@pytest.mark.parametrize("unit", [linear(), embedding(), embedding(aliases=("head.weight",))], ids=["linear", "embedding", "tied"])
def test_rows_add_up_to_the_fisher_harm(unit):
    looked_up = unit.kind == "embedding" and not unit.aliases
    sensitivity, (_, stats) = felt(5 if looked_up else 7), made()
    stats.frequency = torch.tensor([3.0, 0, 1, 0, 0, 9, 2])
    error = torch.randn(unit.shape)
    found = rows(unit, error, stats, sensitivity)
    assert found.shape == (7,) and (found >= 0).all()
    assert float(found.sum()) == pytest.approx(HARMS["fisher"](unit, error, stats, sensitivity, error), rel=1e-6)
    cut = error.clone()
    cut[3:] = 0
    assert float(found[:3].sum()) == pytest.approx(HARMS["fisher"](unit, cut, stats, sensitivity, cut), rel=1e-5)
    lost, whole = (rows(unit, value, stats, None).sum() for value in (cut, error))
    assert float(lost / whole) == pytest.approx(HARMS["error"](unit, cut, stats, sensitivity, error), rel=1e-5)


def test_an_embeddings_entries_count_by_their_look_ups():
    unit, sensitivity, stats = embedding(), felt(5), Stats(frequency=torch.tensor([13.0, 0, 0, 0, 0, 0, 0]))
    often, never = torch.zeros(7, 5), torch.zeros(7, 5)
    often[0], never[1] = 1.0, 1.0
    for kind in ("fisher", "covariance", "error"):
        more, less = (HARMS[kind](unit, error, stats, sensitivity, torch.ones(7, 5)) for error in (often, never))
        assert more == pytest.approx(14 * less, rel=1e-4)
    share = torch.tensor([14.0, 1, 1, 1, 1, 1, 1]) / 20
    error = torch.randn(7, 5)
    naive = 0.5 * torch.einsum("v,vc,cd,vd->", share, error, sensitivity.covariance, error)
    assert HARMS["covariance"](unit, error, stats, sensitivity, error) == pytest.approx(float(naive), rel=1e-4)


def test_what_is_not_known_is_none():
    error = torch.randn(7, 5)
    for kind in HARMS:
        assert HARMS[kind](linear(), error, Stats(), None, error) is None
        bare = Sensitivity(torch.rand(7), None)
        assert HARMS[kind](linear(), error, Stats(), bare, error) is None
    for kind in ("fisher", "covariance"):  # felt at a head that is not its own
        assert HARMS[kind](embedding(), error, Stats(), felt(7), error) is None
    assert rows(linear(), error, Stats(), None) is None is output_error(error, Stats(), None)


def test_what_fits_a_few_tokens_exactly_is_not_free():
    unit, sensitivity, x = linear(), felt(7), torch.randn(3, 5)
    error = torch.randn(7, 2) @ torch.linalg.svd(x).Vh[3:]  # changes nothing at the three tokens that were seen
    few = Stats(count=3, square=x.square().sum(0), covariance=x.T @ x)
    assert float((error @ x.T).abs().max()) < 1e-5 < HARMS["fisher"](unit, error, few, sensitivity, error) / float(error.square().sum())
    enough = Stats(count=5, square=x.square().sum(0), covariance=x.T @ x)
    assert HARMS["fisher"](unit, error, enough, sensitivity, error) == pytest.approx(0.0, abs=1e-6)


class Routed(nn.Module):
    """Experts, the last of which no token chooses."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(16, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 24), nn.SiLU(), nn.Linear(24, 16)) for _ in range(3))
        nn.init.constant_(self.router.bias[2], -100.0)

    def forward(self, x):
        weights, chosen = self.router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            row = (chosen == number).nonzero()[:, 0]
            out = out.index_add(0, row, weights[row, None] * expert(x[row]))
        return out


def test_what_no_gradient_reached_is_told_and_not_free(tmp_path):
    batches = [(torch.randn(4, 16),) for _ in range(6)]
    found = modicum.measure(
        Routed(), data=batches, target="modicum", menu=["nearest bits=4", "nearest bits=8"], search_time=0, out=tmp_path / "out"
    ).findings
    assert any(event.startswith("experts.2.0.weight and 1 more: no gradient reached them") for event in found.events)
    low, high = (found.harm("experts.2.0.weight", f"nearest bits={bits}", "") for bits in (4, 8))
    assert low > high > 0


def test_harm_is_fisher_or_relative():
    unit, sensitivity, (_, stats) = linear(), felt(7), made()
    error, weight = torch.randn(7, 5), torch.randn(7, 5)
    assert harm(unit, error, stats, sensitivity, weight) == HARMS["fisher"](unit, error, stats, sensitivity, weight)
    assert harm(unit, error, stats, None, weight) == HARMS["error"](unit, error, stats, None, weight)


@given(seed=st.integers(0, 999), factor=st.floats(0.1, 10), looked_up=st.booleans(), covariance=st.booleans())
def test_harms_are_quadratic_forms(seed, factor, looked_up, covariance):
    torch.manual_seed(seed)
    unit = embedding() if looked_up else linear()
    sensitivity, (_, stats) = felt(5 if looked_up else 7), made(covariance)
    one, other, weight = torch.randn(3, 7, 5)
    for kind in HARMS:
        value = lambda error, kind=kind: HARMS[kind](unit, error, stats, sensitivity, weight)
        assert value(torch.zeros(7, 5)) == 0
        assert value(one) >= 0
        assert value(factor * one) == pytest.approx(factor**2 * value(one), rel=1e-3)
        assert value(one + other) + value(one - other) == pytest.approx(2 * value(one) + 2 * value(other), rel=1e-3)


# Inputs that are rounded


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    "rounding", [Rounding("int8"), Rounding("fp8"), Rounding("int8", torch.tensor([0.1]))], ids=["int8", "fp8", "coarse"]
)
def test_what_rounded_inputs_lose_is_foreseen(trained, layer, rounding):
    unit, module, inputs = trained.model.units[f"{layer}.weight"], trained.module.get_submodule(layer), trained.inputs[layer]
    stats, weight = trained.stats(layer), module.weight.detach()
    stats.inputs = [inputs]
    form, felt = Activated(Dense(weight), rounding), trained.sensitivities[unit.name]
    before = trained.module(trained.x).logits.double().log_softmax(-1)
    hook = module.register_forward_pre_hook(lambda _, args: rounding(args[0]))
    after = trained.module(trained.x).logits.double().log_softmax(-1)
    hook.remove()
    real = float((before.exp() * (before - after)).sum(-1).mean().detach())
    for kind, most in (("fisher", 3), ("covariance", 1.5)):
        lost, by_row = of_inputs(kind, unit, form, stats, felt, weight)
        assert 1 / most < lost / real < most, (kind, lost, real)
        assert kind != "fisher" or float(by_row.sum()) == pytest.approx(lost)
    squares = ((inputs - rounding(inputs)) @ weight.T).square().sum() / (inputs @ weight.T).square().sum()
    assert of_inputs("error", unit, form, stats, None, weight)[0] == pytest.approx(float(squares), rel=0.35)
    assert of_inputs("fisher", unit, Dense(weight), stats, felt, weight) == (0.0, None)
