import math
from dataclasses import replace

import pytest
import torch

from modicum.core.errors import SettingError
from modicum.core.method import Need
from modicum.core.unit import Stats
from modicum.forms.coded import steps
from modicum.numerics import coding
from modicum.numerics.exponents import raised_by
from modicum.numerics.solver import factorize
from modicum.quantize import Coded, Gptq, Watersic, _stream

RATES = (1.25, 2.0, 3.0, 4.5)


def correlated(columns, condition=1e3, seed=1):
    """A covariance with a spread of energies in turned directions."""
    chance = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(columns, columns, generator=chance))[0]
    return turn @ torch.diag(torch.logspace(0, -math.log10(condition), columns)) @ turn.T * 1000


@pytest.mark.parametrize("bits", RATES)
@pytest.mark.parametrize("make", [Coded, Watersic])
def test_the_stream_has_its_size_and_is_used(layer, make, bits):
    thing = layer(256, 128)
    form = thing.apply(make(rate=bits))
    assert form.nbytes == 19 + 256 * 128 * bits / 8 == sum(tensor.nbytes for tensor in form.tensors().values())
    used = len(form.tensors()["stream"].numpy().tobytes().rstrip(b"\0"))
    assert used > 0.985 * form.nbytes


@pytest.mark.parametrize("bits", RATES)
def test_less_error_than_plain_grids_of_more_bits(layer, bits):
    thing = layer(256, 128)
    stats = Stats(count=500, covariance=correlated(128))
    error = lambda form: float((((form.dense() - thing.weight) @ stats.covariance) * (form.dense() - thing.weight)).sum())
    ours, plain = (
        thing.apply(Watersic(rate=bits), stats=stats),
        thing.apply(Gptq(bits=max(2, round(bits)), group=64, sweeps=0), stats=stats),
    )
    if bits >= 2:
        assert ours.nbytes < plain.nbytes and error(ours) < 0.7 * error(plain)
    assert error(ours) < 0.6 * error(thing.apply(Coded(rate=bits)))


def test_near_water_filling():
    """Of Gaussian weights no code of any kind leaves less error than water-filling over the spectrum; this one at most that of 0.35 bits fewer."""
    weight, covariance, bits = torch.randn(512, 256, generator=torch.Generator().manual_seed(0)), correlated(256, 1e2), 3.0
    form = Watersic(rate=bits).code(weight, Stats(count=999, covariance=covariance), torch.float32)
    error = form.dense() - weight
    found = float(((error.double() @ covariance.double()) * error.double()).sum()) / 512
    spectrum = torch.linalg.eigvalsh(covariance.double())
    best = lambda rate: float(spectrum.log().mean().exp()) * 256 * 2 ** (-2 * rate)  # no direction is under water at this rate
    assert best(bits) < float(spectrum.min()) * 256 * 4
    assert best(bits) < found < best(bits - 0.35)


def test_steps_fall_with_what_is_left_of_a_column():
    covariance = correlated(64)
    form = Watersic(rate=3.0, damping=0.02).code(torch.randn(64, 64), Stats(count=99, covariance=covariance), torch.float32)
    order = covariance.diagonal().argsort(descending=True, stable=True)
    octaves = torch.empty(64)
    octaves[order] = -0.5 * factorize(covariance, 0.02, order).curvature.log2()
    told = steps(form.columns, 1.0).log2()
    assert float(((told - told.mean()) - (octaves - octaves.mean())).abs().max()) < 0.3


def test_without_correlation_it_is_the_coded_one(layer):
    thing = layer(32, 64)
    stats = Stats(count=99, covariance=torch.eye(64) * 99)
    ours, plain = thing.apply(Watersic(rate=3.0), stats=stats), thing.apply(Coded(rate=3.0))
    assert torch.equal(ours.codes, plain.codes)
    torch.testing.assert_close(ours.dense(), plain.dense(), rtol=1e-6, atol=0)


def test_an_outlier_is_kept(layer):
    thing = layer(64, 64)
    thing.weight[3, 5] = 40.0
    for make in (Coded, Watersic):
        assert abs(float(thing.apply(make(rate=3.0)).dense()[3, 5]) - 40) < 2


@pytest.mark.parametrize(
    "weight", [torch.zeros(8, 16), torch.full((8, 16), 3.0), torch.eye(3, 5), torch.randn(1, 1), torch.randn(1, 300) * 1e-20]
)
def test_odd_weights(weight):
    for form in (Coded(rate=3.0), Watersic(rate=3.0)):
        made = (
            form.code(weight, Stats(count=9, covariance=torch.eye(weight.shape[1])), torch.float32) if isinstance(form, Watersic) else None
        )
        made = made or form.apply(*_alone(weight)).forms["w"]
        assert made.nbytes == 19 + math.ceil(weight.numel() * 3 / 8) and made.finite() and made.tensors()


def _alone(weight):
    from modicum.core.unit import Site, Unit
    from modicum.forms import Dense

    unit = Unit("w", "w", "", "linear", tuple(weight.shape), tuple(weight.shape), weight.dtype)
    return Site("w", "unit", (unit,)), {"w": Stats()}, {"w": Dense(weight)}


def test_several_bits_are_solved_together_to_the_same_codes(layer):
    thing = layer(64, 96)
    steps = [Watersic(rate=bits, paths=False) for bits in RATES]
    stats = thing.stats(Watersic.needs)
    stats.ahead = tuple(steps)
    together = [thing.apply(step, stats=stats) for step in steps]
    for step, form in zip(steps, together):
        assert torch.equal(form.dense(), thing.apply(step).dense())
    assert not stats.made


def test_bits_out_of_bounds():
    with pytest.raises(SettingError, match="between 1.0 and 6"):
        Watersic(rate=7.0)


def test_rows_that_are_felt_more_take_finer_steps_and_what_errors_cost_is_less(layer):
    thing, felt = layer(96, 128), torch.logspace(0, 3, 96)
    plain, ours = thing.stats(Watersic.needs), thing.stats(Watersic.needs)
    ours.raised = raised_by(felt)
    lost = lambda stats: ((thing.apply(Watersic(rate=2.5), stats=stats).dense() - thing.weight) @ thing.inputs.T).square().mean(1)
    assert float((felt * lost(ours)).sum()) < 0.5 * float((felt * lost(plain)).sum())
    told = thing.apply(Watersic(rate=2.5), stats=ours)
    assert torch.equal(told.raised, ours.raised) and told.nbytes == thing.apply(Watersic(rate=2.5), stats=plain).nbytes
    steps_of_rows = steps(ours.raised, 1.0).log2()
    assert float((steps_of_rows + 0.25 * felt.log2() - (steps_of_rows + 0.25 * felt.log2()).mean()).abs().max()) < 0.35


@pytest.mark.parametrize("bits", [1.5, 2.0, 3.0, 4.0])
def test_paths_leave_less_error_in_the_same_bytes(layer, bits):
    thing = layer(256, 128)
    stats = lambda: Stats(count=500, covariance=correlated(128))
    error = lambda form: float((((form.dense() - thing.weight) @ stats().covariance) * (form.dense() - thing.weight)).sum())
    ours, plain = (thing.apply(Watersic(rate=bits, paths=paths), stats=stats()) for paths in (True, False))
    assert ours.nbytes == plain.nbytes and (ours.trellis, plain.trellis) == (8, 0)
    assert error(ours) < 0.85 * error(plain)


@pytest.mark.parametrize("bits", [1.5, 3.0])
def test_what_is_compared_has_the_error_of_paths_without_them(layer, bits):
    thing = layer(384, 128)
    error = lambda form: float((((form.dense() - thing.weight) @ correlated(128)) * (form.dense() - thing.weight)).sum())
    seen, one, other = Stats(count=500, covariance=correlated(128)), Watersic(rate=bits), Watersic(rate=4.0)
    written = thing.apply(one, stats=seen)
    seen.ahead = (one, other)
    compared = thing.apply(one, stats=seen)
    assert (written.trellis, compared.trellis) == (8, 0)
    assert 0.9 < error(compared) / error(written) < 1.12


def test_what_pruning_left_at_zero_takes_no_path():
    site, stats, forms = _alone(torch.randn(96, 64))
    pruned = replace(site, units=(replace(site.units[0], pruned=True),))
    for unit, trellis in ((site, 8), (pruned, 0)):
        assert Coded(rate=3.0).apply(unit, stats, forms).forms["w"].trellis == trellis


def test_codes_aim_at_what_makes_up_for_drift(layer):
    thing, covariance = layer(96, 64), correlated(64)
    drift = 0.5 * covariance @ torch.randn(64, 64, generator=torch.Generator().manual_seed(2)) / 8
    seen = lambda **more: Stats(count=500, covariance=covariance, **more)
    method = Watersic(rate=2.5, damping=0.0, towards=0.5)
    aim = thing.weight + 0.5 * thing.weight @ drift @ torch.linalg.inv(covariance)
    found, straight = method.code(thing.weight, seen(drift=drift), torch.float32), method.code(aim, seen(), torch.float32)
    error = lambda form: float((((form.dense() - aim) @ covariance) * (form.dense() - aim)).sum())
    assert error(found) == pytest.approx(error(straight), rel=0.05)
    assert error(found) < 0.7 * error(method.code(thing.weight, seen(), torch.float32))
    assert Need.DRIFT in Watersic(rate=5.0).wanted() and Need.DRIFT not in Watersic(towards=0.0).wanted()


def hindered(monkeypatch, below):
    """Codes under a damping below this one begin at steps so fine that none meets its room."""
    first, following = coding._Coding._first, coding._Coding._next
    fine = lambda own: own.factor is not None and own.factor.damping < below
    monkeypatch.setattr(coding._Coding, "_first", lambda own, *words: first(own, *words) / (1e4 if fine(own) else 1))
    monkeypatch.setattr(coding._Coding, "_next", lambda own, *words: words[1][-1].scale * 1.001 if fine(own) else following(own, *words))


@pytest.mark.parametrize("ahead", [False, True])
def test_codes_that_do_not_settle_take_a_firmer_damping_and_are_never_rounded_alone(layer, monkeypatch, ahead):
    thing, covariance = layer(96, 64), correlated(64)
    seen = lambda: Stats(count=500, covariance=covariance, ahead=(Watersic(rate=2.5, damping=0.5), Watersic(rate=2.5, damping=8.0)) * ahead)
    firm = Watersic(rate=2.5, damping=8.0).code(thing.weight, seen(), torch.float32)
    hindered(monkeypatch, 5.0)
    told = seen()
    found = Watersic(rate=2.5, damping=0.5).code(thing.weight, told, torch.float32)
    assert torch.equal(found.dense(), firm.dense()) and not told.events
    told, hopeless = seen(), 1e9
    hindered(monkeypatch, hopeless)
    assert Watersic(rate=2.5, damping=0.5).code(thing.weight, told, torch.float32).nbytes == found.nbytes
    assert any("rounded to the nearest" in event for event in told.events)


def test_of_codes_that_settle_late_the_better_ones_are_taken(layer, monkeypatch):
    thing, covariance = layer(96, 64), correlated(64)
    error = lambda form: float((((form.dense() - thing.weight) @ covariance) * (form.dense() - thing.weight)).sum())
    code = lambda damping: error(
        Watersic(rate=2.0, damping=damping).code(thing.weight, Stats(count=500, covariance=covariance), torch.float32)
    )
    firm = code(2.0)
    first, following = coding._Coding._first, coding._Coding._next
    # Under the damping that was asked for codes begin too fine, lose patience, and come to their room by a step that is far too coarse.
    slow = lambda own: own.factor.damping < 1
    monkeypatch.setattr(coding._Coding, "_first", lambda own, *words: first(own, *words) / (1.1 if slow(own) else 1))
    monkeypatch.setattr(coding._Coding, "_next", lambda own, *words: words[1][-1].scale * 4 if slow(own) else following(own, *words))
    monkeypatch.setattr(coding, "_PATIENCE", 1)
    found = code(0.5)
    assert found == firm
    monkeypatch.setattr(_stream, "_FIRMER", 0)
    assert found < 0.8 * code(0.5)
    # And the other way round: what came late is kept where the firmer codes are worse.
    monkeypatch.undo()
    own = code(0.5)
    monkeypatch.setattr(coding._Coding, "_first", lambda own, *words: first(own, *words) / (1.02 if slow(own) else 0.25))
    monkeypatch.setattr(coding, "_PATIENCE", 1)
    assert code(0.5) == pytest.approx(own, rel=0.05)


@pytest.mark.parametrize("shape", [(8, 1), (1, 8), (3, 2), (64, 2)])
@pytest.mark.parametrize("method", [Watersic, Coded])
def test_a_few_weights_are_coded_or_refused_in_a_sentence(shape, method):
    stats, weight = Stats(count=50, covariance=torch.eye(shape[1])), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for rate in (1.0, 2.0, 6.0):
        try:
            assert method(rate=rate).code(weight, stats, torch.float32).dense().isfinite().all()
        except SettingError as error:
            assert weight.numel() <= 8 and "Take a higher one, or keep them." in str(error)
