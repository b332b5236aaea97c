import pytest
import torch

from modicum.core.errors import ModelError, SettingError
from modicum.core.method import Need
from modicum.core.unit import Stats
from modicum.forms import Cut, Dense, Integer
from modicum.numerics.solver import solve
from modicum.quantize import Gptq, Hqq, Nearest, _columns, _rounded


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("settings", [{}, {"symmetric": True}, {"group": 0}, {"order": "none", "group": 32}])
def test_output_error_is_well_below_that_of_rounding_to_nearest(layer, bits, settings):
    thing = layer(32, 128)
    nearest = {name: value for name, value in settings.items() if name != "order"}
    ours, theirs = (thing.error(thing.apply(step)) for step in (Gptq(bits=bits, **settings), Nearest(bits=bits, **nearest)))
    assert ours < 0.5 * theirs


def test_on_its_grid_the_loss_is_below_that_of_rounding(layer):
    thing = layer(32, 128)  # the same scales, so that nothing but the order of errors differs
    form = thing.apply(Gptq(bits=3, clip=1.0, sweeps=0))
    nearest = thing.apply(Nearest(bits=3))
    assert torch.equal(form.scale, nearest.scale) and torch.equal(form.zero, nearest.zero)
    assert thing.error(form) < 0.6 * thing.error(nearest)


@pytest.mark.parametrize("settings", [{}, {"group": 20}, {"group": 0}, {"group": -1}, {"symmetric": True}, {"bits": 2}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_reduces_to_nearest_where_inputs_are_uncorrelated(layer, settings, dtype):
    thing = layer(8, 96, dtype=dtype)
    stats = Stats(count=9, covariance=torch.diag(torch.rand(96) + 0.1))
    form = thing.apply(Gptq(order="none", clip=1.0, sweeps=0, **settings), stats=stats)
    expected = thing.apply(Nearest(**settings))
    assert torch.equal(form.codes, expected.codes) and torch.equal(form.scale, expected.scale)
    assert torch.equal(form.dense(), expected.dense())


@pytest.mark.parametrize("settings", [{}, {"group": 0}, {"group": -1}, {"symmetric": True}])
def test_with_static_order_too(layer, settings):
    thing = layer(8, 96)
    stats = Stats(count=9, covariance=torch.diag(torch.rand(96) + 0.1))
    assert torch.equal(thing.apply(Gptq(clip=1.0, sweeps=0, **settings), stats=stats).dense(), thing.apply(Nearest(**settings)).dense())


@pytest.mark.parametrize("sweeps", [0, 2])
def test_the_loss_is_that_of_the_codes(layer, sweeps):
    thing = layer()
    stats = thing.stats(Gptq.needs)
    error = (thing.weight - thing.apply(Gptq(bits=3, sweeps=sweeps), stats=stats).dense()).double()
    covariance = stats.covariance.double()
    covariance += 0.01 * covariance.diagonal().mean() * torch.eye(96)
    assert stats.cache["loss"] == pytest.approx(float(((error @ covariance) * error).sum()), rel=1e-3)


def test_static_order_takes_strong_inputs_first_and_stores_the_columns_in_place(layer):
    scales = torch.ones(96)
    scales[90:] = 30
    thing = layer(scales=scales)
    static, plain = (thing.error(thing.apply(Gptq(bits=2, order=order, clip=1.0, sweeps=0))) for order in ("static", "none"))
    assert static < 0.5 * plain


def test_one_factorization_serves_all_bits_and_options(layer):
    thing = layer()
    stats = thing.stats(Gptq.needs)
    thing.apply(Gptq(bits=2), stats=stats)
    keys = [key for key in stats.cache if isinstance(key, tuple)]
    (factor,) = (stats.cache[key][1] for key in keys)
    thing.apply(Gptq(bits=8, group=32), stats=stats)
    assert [key for key in stats.cache if isinstance(key, tuple)] == keys and stats.cache[keys[0]][1] is factor
    thing.apply(Gptq(damping=0.1), stats=stats)
    assert len([key for key in stats.cache if isinstance(key, tuple)]) == 2


def test_raised_damping_is_told(layer):
    thing = layer(tokens=1)
    stats = thing.stats(Gptq.needs)
    thing.apply(Gptq(damping=1e-9), stats=stats)
    (event,) = stats.events
    assert event.startswith("damping raised ") and "times to" in event


def test_inputs_that_are_not_finite_are_refused(layer):
    stats = Stats(count=1, covariance=torch.full((96, 96), float("nan")))
    with pytest.raises(ModelError, match="covariance of inputs must be finite"):
        layer().apply(Gptq(), stats=stats)


def test_damping_that_cannot_help_is_told(layer):
    with pytest.raises(ModelError, match="makes the covariance positive definite"):
        layer(tokens=1).apply(Gptq(damping=0.0))


def test_it_treats_what_remains_of_a_cut(layer):
    thing = layer()
    columns = torch.arange(96) % 3 != 0
    form = thing.apply(Gptq(bits=4), current=Cut(Dense(thing.weight[:, columns]), None, columns))
    assert isinstance(form, Cut) and isinstance(form.inner, Integer) and not form.dense()[:, ~columns].any()
    alone = Stats(count=400, covariance=thing.stats(Gptq.needs).covariance[columns][:, columns])
    inner = Gptq(bits=4).quantize(thing.weight[:, columns], Gptq(bits=4).grid, alone, torch.float32)
    assert torch.equal(form.inner.dense(), inner.dense())


def test_without_data_hqq_stands_in():
    assert Gptq(bits=3, group=32, symmetric=True, damping=0.1).without_data() == Hqq(bits=3, group=32, symmetric=True)


def table(columns=64):
    """A table's weight, and the second moment of a gradient that feels some directions far more."""
    gradients = torch.randn(4 * columns, columns) * torch.logspace(0, -1.5, columns) @ torch.linalg.qr(torch.randn(columns, columns))[0]
    return torch.randn(300, columns), gradients.T @ gradients


@pytest.mark.parametrize("settings", [{"bits": 2}, {"bits": 4, "symmetric": True}, {"bits": 3, "group": 32, "scales": 6}])
def test_columns_of_a_table_make_up_for_each_other_as_the_output_feels_them(layer, settings):
    thing, step = layer(), Gptq(**settings).looked_up()
    thing.weight, felt = table()
    ours, theirs = thing.apply(step, stats=Stats(felt=felt)), thing.apply(Gptq(**settings).without_data(), stats=Stats(felt=felt))
    lost = lambda form: float(((form.dense() - thing.weight) @ felt * (form.dense() - thing.weight)).sum())
    assert ours.nbytes == theirs.nbytes and lost(ours) < 0.6 * lost(theirs)
    as_inputs = thing.apply(Gptq(**settings, damping=0.1, towards=0.0), stats=Stats(count=300, covariance=felt))
    assert torch.equal(ours.dense(), as_inputs.dense())


def test_the_codes_of_a_table_are_those_of_a_plain_loop():
    """One column after the other, what each loses regressed on those after it; a row's largest entry may lie right between two levels."""
    weight, felt = table(16)
    step = Gptq(bits=3, group=0, symmetric=True, order="none", clip=1.0, sweeps=0, moment="felt")
    form = step._whole(weight, Stats(felt=felt))
    damped = (felt + 0.1 * felt.diagonal().mean() * torch.eye(16)).double()
    left, scale, codes = weight.double().clone(), form.scale.double(), []
    for column in range(16):
        codes.append((left[:, column] / scale[:, 0]).round().clamp(-4, 3))
        error, rest = left[:, column] - codes[-1] * scale[:, 0], slice(column + 1, None)
        left[:, rest] += error[:, None] * torch.linalg.solve(damped[rest, rest], damped[rest, column])
    assert torch.isclose(form.dense().double(), torch.stack(codes, 1) * scale, atol=1e-5).all(1).float().mean() > 0.9


def test_a_table_that_was_not_seen_felt_takes_hqq_and_says_so(layer):
    thing, step, stats = layer(), Gptq(bits=3, group=32).looked_up(), Stats()
    assert str(step) == "gptq bits=3 group=32 moment=felt" and step == step.looked_up()
    assert step.feels and not step.wanted() and not Gptq().feels
    assert torch.equal(thing.apply(step, stats=stats).dense(), thing.apply(Hqq(bits=3, group=32)).dense())
    assert stats.events == [f"how the output feels it was not seen, hqq bits=3 group=32 stands in for {step}"]


def test_it_cannot_come_after_another_quantizer(layer):
    with pytest.raises(SettingError, match=r"quantize/gptq: must come before .* left it integer\. Put quantize/gptq first"):
        layer().apply(Nearest(), Gptq())


@pytest.mark.parametrize(
    "settings, said", [({"bits": 1}, "gptq.bits"), ({"order": "desc"}, "gptq.order"), ({"damping": -1.0}, "gptq.damping")]
)
def test_settings_out_of_bounds_are_refused(settings, said):
    with pytest.raises(SettingError, match=f"{said}: must"):
        Gptq(**settings)


@pytest.mark.parametrize("rows", [5, 500])
def test_methods_that_go_together_give_what_each_gives_alone(rows):
    """Of few rows all grids are solved at once; of many each by itself."""
    weight, inputs = torch.randn(rows, 96), torch.randn(300, 96)
    steps = [Gptq(bits=bits, group=group, symmetric=bits == 3) for bits in (2, 3, 8) for group in (0, 32, -1)]
    apart = [Gptq(bits=4, group=32, damping=0.1), Gptq(bits=4, group=32, order="none")]
    ours, alone = (Stats(count=300, covariance=inputs.T @ inputs) for _ in range(2))
    ours.ahead = (*steps[:4], *apart, *steps[4:])
    for step in ours.ahead:
        alone.ahead = (step,)
        one, other = (step.quantize(weight, step.grid, stats, torch.float32) for stats in (ours, alone))
        assert torch.equal(one.codes, other.codes) and torch.equal(one.scale, other.scale)
        assert (one.bits, one.group) == (other.bits, other.group)
    assert not ours.made


@pytest.mark.parametrize("sizes, bits", [((5, 5, 5), 3), ((40, 3, 17), 4), ((200, 64), 3), ((200, 64), 4)])
def test_weights_with_the_same_inputs_are_solved_at_once_to_the_bit_as_each_alone(sizes, bits, monkeypatch):
    inputs, method, calls = torch.randn(300, 96) @ torch.randn(96, 96), Gptq(bits=bits, group=32), []
    weights, covariance = [torch.randn(rows, 96) for rows in sizes], inputs.T @ inputs
    alone = [method.quantize(weight, method.grid, Stats(count=300, covariance=covariance), torch.float32) for weight in weights]
    monkeypatch.setattr(_rounded, "solve", lambda *given, **more: calls.append(1) or solve(*given, **more))
    shared: dict = {}
    stats = [Stats(count=300, covariance=covariance, cache=shared) for _ in sizes]
    stats[0].beside = tuple(zip(weights[1:], stats[1:]))
    together = [method.quantize(weight, method.grid, own, torch.float32) for weight, own in zip(weights, stats)]
    assert len(calls) == 1 and not any(own.made for own in stats)
    for one, other in zip(alone, together):
        assert torch.equal(one.codes, other.codes) and torch.equal(one.scale, other.scale) and torch.equal(one.zero, other.zero)


def test_what_was_made_of_another_weight_is_not_taken():
    weight, inputs = torch.randn(4, 64), torch.randn(200, 64)
    steps = (Gptq(bits=4), Gptq(bits=8))
    stats = Stats(count=200, covariance=inputs.T @ inputs, ahead=steps)
    steps[0].quantize(weight, steps[0].grid, stats, torch.float32)
    form = steps[1].quantize(2 * weight, steps[1].grid, stats, torch.float32)
    torch.testing.assert_close(form.dense(), 2 * weight, rtol=0, atol=0.1)


@pytest.mark.parametrize("settings", [{"group": 0, "symmetric": True}, {"group": 32}, {"group": -1}])
@pytest.mark.parametrize("rows", [5, 300])
def test_what_is_refined_loses_less_than_what_columns_decided_one_after_the_other(settings, rows):
    inputs = torch.randn(300, 96) @ torch.randn(96, 96)
    weight, stats = torch.randn(rows, 96), Stats(count=300, covariance=inputs.T @ inputs)
    losses = []
    for sweeps in (0, 1, 3):
        step = Gptq(bits=2, sweeps=sweeps, **settings)
        error = weight - step.quantize(weight, step.grid, stats, torch.float32).dense()
        losses.append(float(((error @ stats.covariance) * error).sum()))
    assert losses[2] <= losses[1] < losses[0]
    assert losses[2] < 0.9 * losses[0] or settings["group"] < 0  # one scale for all rows stays as it is


def test_weights_of_several_slabs_are_refined_slab_by_slab(monkeypatch):
    weight, inputs = torch.randn(40, 96), torch.randn(300, 96)
    covariance = inputs.T @ inputs
    for group in (-1, 0, 32):
        step = Gptq(bits=2, group=group)
        whole = step.quantize(weight, step.grid, Stats(count=300, covariance=covariance), torch.float32)
        with monkeypatch.context() as patched:
            patched.setattr(_columns, "slabs", lambda weight: [slice(low, low + 13) for low in range(0, len(weight), 13)])
            parts = step.quantize(weight, step.grid, Stats(count=300, covariance=covariance), torch.float32)
        assert torch.equal(whole.codes, parts.codes) and torch.equal(whole.scale, parts.scale)


def drifted(thing, share=0.5):
    """Statistics of a layer's inputs where the original met others, which are returned too."""
    original = thing.inputs + share * torch.randn(len(thing.inputs), 24) @ torch.randn(24, thing.inputs.shape[1])
    stats = thing.stats(Gptq.needs)
    stats.drift = (original - thing.inputs).T @ thing.inputs
    return stats, original


@pytest.mark.parametrize("settings", [{}, {"group": 0, "symmetric": True}, {"order": "none", "group": 32}])
def test_codes_of_few_bits_make_up_for_what_was_lost_before(layer, settings):
    thing = layer()
    stats, original = drifted(thing)
    lost = lambda share: (
        thing.inputs @ thing.apply(Gptq(bits=3, towards=share, **settings), stats=stats).dense().T - original @ thing.weight.T
    ).norm()
    assert lost(1.0) < lost(0.5) < lost(0.0)


@pytest.mark.parametrize("settings", [{"bits": 2, "towards": 0.0}, {"bits": 4}, {"bits": 8, "towards": 1.0}])
def test_without_strength_or_at_more_bits_drift_changes_nothing(layer, settings):
    thing = layer()
    stats, _ = drifted(thing)
    ours, plain = thing.apply(Gptq(**settings), stats=stats), thing.apply(Gptq(**settings))
    assert torch.equal(ours.codes, plain.codes) and torch.equal(ours.scale, plain.scale)
    assert Need.DRIFT not in Gptq(**settings).wanted() and Need.DRIFT in Gptq(bits=3).wanted()


def test_weights_beside_each_other_aim_as_each_alone_does(layer):
    thing, other = layer(), torch.randn(7, 96)
    stats, _ = drifted(thing)
    theirs, method = Stats(count=400, covariance=stats.covariance, drift=stats.drift, cache=stats.cache), Gptq(bits=2, group=32)
    alone = [method.quantize(weight, method.grid, drifted_again, torch.float32) for weight in (thing.weight, other)
             for drifted_again in [Stats(count=400, covariance=stats.covariance, drift=stats.drift)]]  # fmt: skip
    stats.beside = ((other, theirs),)
    made = [method.quantize(thing.weight, method.grid, stats, torch.float32), method.quantize(other, method.grid, theirs, torch.float32)]
    for one, expected in zip(made, alone):
        assert torch.equal(one.codes, expected.codes) and torch.equal(one.scale, expected.scale)


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_what_is_written_is_moved_further_than_what_is_compared(layer, bits):
    thing, method, losses = layer(), Gptq(bits=bits, group=32), []
    for ahead in ((method,), ()):
        stats = thing.stats(Gptq.needs)
        stats.ahead = ahead
        form = method.quantize(thing.weight, method.grid, stats, torch.float32)
        losses.append(thing.error(form))
    assert losses[1] < losses[0]


def test_rows_that_are_felt_together_are_made_in_turns(layer):
    thing, mix = layer(), torch.randn(24, 6)
    felt = mix @ mix.T + 0.1 * torch.eye(24)

    def harm(form):
        error = thing.inputs @ (thing.weight - form.dense()).T
        return float((error @ felt * error).sum())

    stats = thing.stats(Gptq.needs)
    stats.coupled = felt
    assert harm(thing.apply(Gptq(bits=2, group=32, turns=4), stats=stats)) < 0.9 * harm(
        thing.apply(Gptq(bits=2, group=32, turns=1), stats=stats)
    )
    for settings in ({"group": -1}, {"bits": 4}):
        one, other = (thing.apply(Gptq(**{"bits": 2, **settings, "turns": turns}), stats=stats) for turns in (1, 4))
        assert torch.equal(one.codes, other.codes)
