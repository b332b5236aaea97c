"""ZipLM: the groups go whose work the others can do, and the others then do it."""

import pytest
import torch

import modicum
from modicum.core.errors import ModelError
from modicum.core.unit import Stats
from modicum.data.splits import call
from modicum.drop import Flap, Ziplm
from modicum.models.open import open_model
from modicum.sweep import rehearse
from modicum.sweep.coupling import coupled_cuts, kept_rows
from modicum.sweep.spill import SpillPool
from modicum.testing import zoo

SETTINGS = {"target": "modicum", "allocator": "uniform"}


def surveyed(method, module, batches):
    model = open_model(module)
    return model, method.reshape(model, rehearse(model, batches[0]), batches, SpillPool(None))


def lost(weight, inputs, columns, part):
    """Squared error of the outputs with ``part`` on ``columns`` instead of the whole weight, relative to their energy."""
    whole = inputs @ weight.T
    return float((inputs[:, columns] @ part.T - whole).square().sum() / whole.square().sum())


@pytest.mark.parametrize("width", [1, 8])
def test_loses_less_than_any_choice_without_a_refit_on_correlated_inputs(layer, width):
    data = layer(rows=24, columns=96)
    weight, inputs, groups = data.weight, data.inputs, [tuple(range(start, start + width)) for start in range(0, 96, width)]
    covariance, method = inputs.T @ inputs, Ziplm(keep=0.5)
    kept = torch.tensor(sorted(column for group in method.kept(method.order(weight, covariance, groups)) for column in groups[group]))
    ours = lost(weight, inputs, kept, method.refit(weight, covariance, kept))
    stats = Stats(count=len(inputs), total=inputs.sum(0), square=inputs.square().sum(0))
    norms = weight.square().sum(0).view(len(groups), -1).sum(1)
    for scores in (norms, Flap().rank(weight, stats, groups)):
        best = scores.argsort(descending=True)[: len(groups) // 2].tolist()
        columns = torch.tensor(sorted(column for group in best for column in groups[group]))
        assert ours < 0.5 * lost(weight, inputs, columns, weight[:, columns])
        # The choice is better too, not only the refit.
        assert ours < lost(weight, inputs, columns, method.refit(weight, covariance, columns))


def test_without_correlation_it_is_the_energy_that_counts(layer):
    data = layer(columns=32, correlated=False, tokens=4000, scales=torch.linspace(0.2, 2, 32)[torch.randperm(32)])
    covariance = torch.diag(data.inputs.square().sum(0))
    energy = data.weight.square().sum(0) * covariance.diagonal()
    order = Ziplm(damping=0.0, lot=0.0).order(data.weight, covariance, [(column,) for column in range(32)])
    assert order == energy.argsort().tolist()


def test_keep_everything_changes_nothing():
    module, batches = zoo.build("llama")
    model, change = surveyed(Ziplm(keep=1.0), module, batches)
    assert len(change.forms) == 21 and not change.biases and not change.dropped
    for name, form in change.forms.items():
        assert torch.equal(form.dense(), model.matrix(model.units[name]))


def test_heads_that_share_keys_and_values_go_together():
    module, batches = zoo.build("llama")  # four heads on two keys and values
    model, change = surveyed(Ziplm(keep=0.5), module, batches)
    for block in model.blocks:
        name = f"{block}.self_attn"
        queries, keys, values = (change.forms[f"{name}.{part}_proj.weight"] for part in "qkv")
        output = change.forms[f"{name}.o_proj.weight"]
        heads = keys.rows.view(2, 16)
        assert heads.all(1).sum() == 1 and heads.any(1).sum() == 1
        assert torch.equal(values.rows, keys.rows)
        assert torch.equal(queries.rows, heads.repeat_interleave(2, 0).reshape(-1)) and torch.equal(output.columns, queries.rows)
    assert f"{name}:heads: keeps 1 of 2 groups" in change.events


def test_a_cut_model_loads_and_verifies_and_really_is_narrower(tmp_path):
    module, batches = zoo.build("llama")
    result = modicum.fit(module, method="ziplm keep=0.5", data=batches, out=tmp_path / "out", **SETTINGS)
    assert result.receipt["verification"]["logits"]["largest"] < 1e-6
    assert result.receipt["bytes"]["actual"] == result.receipt["bytes"]["predicted"]
    loaded = modicum.load(tmp_path / "out")
    for layer in loaded.model.layers:
        shapes = {name: tuple(part.weight.shape) for name, part in layer.named_modules() if isinstance(part, torch.nn.Linear)}
        assert shapes == {
            "self_attn.q_proj": (32, 64), "self_attn.k_proj": (16, 64), "self_attn.v_proj": (16, 64), "self_attn.o_proj": (64, 32),
            "mlp.gate_proj": (64, 64), "mlp.up_proj": (64, 64), "mlp.down_proj": (64, 64),
        }  # fmt: skip


def test_the_refit_helps_the_whole_model():
    module, batches = zoo.build("opt")
    means = {}
    for method in ("ziplm keep=0.7", "flap keep=0.7", "flap keep=0.7 bias=false"):
        means[method] = modicum.fit(module, method=method, data=batches, **SETTINGS).receipt["quality"]["mean"]
    assert means["ziplm keep=0.7"] < min(means["flap keep=0.7"], means["flap keep=0.7 bias=false"])


def test_channels_that_never_fire_go_for_nothing():
    module, batches = zoo.build("opt")
    silent = torch.randperm(128)[:96]
    with torch.no_grad():
        for layer in module.model.decoder.layers:
            layer.fc1.bias[silent] = -1e4
        before = call(module, batches[0]).logits
    model, change = surveyed(Ziplm(keep=0.25, damping=1e-6), module, batches)
    ffns = {name: form for name, form in change.forms.items() if ".fc" in name}
    assert len(ffns) == 6 and all(min(form.inner.shape) == 32 for form in ffns.values())
    for name, form in ffns.items():
        model.weights.put(name, form.dense())
    with torch.no_grad():
        torch.testing.assert_close(call(module, batches[0]).logits, before, rtol=1e-3, atol=1e-3)


def test_the_same_cut_twice():
    module, batches = zoo.build("gpt2")
    first, second = (surveyed(Ziplm(keep=0.4), module, batches)[1] for _ in range(2))
    assert first.events == second.events
    for name, form in first.forms.items():
        assert torch.equal(form.dense(), second.forms[name].dense())


def test_forms_say_what_the_sites_say():
    module, batches = zoo.build("gpt2")
    model = open_model(module)
    script = rehearse(model, batches[0])
    change = Ziplm(keep=0.3).reshape(model, script, batches, SpillPool(None))
    for site in coupled_cuts(model, script, batches[0]):
        consumer = site.axes[-1]
        columns = change.forms[consumer.unit].columns
        kept = [place for place, group in enumerate(consumer.groups) if columns[list(group)].all()]
        assert len(kept) == max(1, round(0.3 * len(consumer.groups)))
        for unit, axis in list(zip(site.units, site.axes))[:-1]:
            assert torch.equal(change.forms[unit.name].rows, kept_rows(axis, kept, unit.shape[0]))


def test_at_least_one_group_remains():
    assert Ziplm(keep=0.0).kept([2, 0, 1]) == [1]
    assert Ziplm(keep=1.0).kept([2, 0, 1]) == [0, 1, 2]


def test_a_model_without_coupled_cuts_is_refused():
    module, batches = zoo.build("cnn")
    with pytest.raises(ModelError, match=r"drop/ziplm: .* must have coupled cuts \(heads, channels\), none was found\."):
        surveyed(Ziplm(), module, batches)
