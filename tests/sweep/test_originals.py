"""The original beside the compressed model: what its units meet stands beside what the treated ones do, and nothing of it is compressed."""

import copy

import pytest
import torch

from modicum.core.method import Need
from modicum.data.splits import call
from modicum.forms import Dense
from modicum.models.open import open_model
from modicum.sweep import Sweep, rehearse
from modicum.sweep.outputs import output_tensor
from modicum.testing import zoo

NEEDS = frozenset({Need.COVARIANCE, Need.DRIFT})


def swept(name, *, alongside=True, built=None, **settings):
    """A model, what its weights became, what was measured of them, outputs by index, and the sweep."""
    module, batches = built or zoo.build(name)
    model, found, made = open_model(module), {}, {}

    def treat(stage):
        found.update(stage.stats)
        forms = {unit.name: Dense(1.1 * model.matrix(unit)) for unit in stage.units if stage.stats[unit.name].moment is not None}
        made.update({name: model.units[name].stored(form.dense()) for name, form in forms.items() if model.units[name].kind != "expert"})
        return forms

    sweep = Sweep(model, batches, rehearse(model, batches[0]), treat, needs=NEEDS, alongside=alongside, **settings)
    outputs = {index: output_tensor(output)[0].clone() for index, output in sweep.run()}
    return module, batches, made, found, outputs, sweep


def met(module, name, batches):
    """What a module is given (tokens, columns)."""
    rows = []
    hook = module.get_submodule(name).register_forward_pre_hook(lambda _, args: rows.append(args[0].reshape(-1, args[0].shape[-1])))
    with torch.no_grad():
        for batch in batches:
            call(module, batch)
    hook.remove()
    return torch.cat(rows).double()


def test_drift_is_what_hooks_on_both_models_see():
    module, batches, made, found, _, sweep = swept("llama")
    treated = copy.deepcopy(module)
    for name, value in made.items():
        treated.get_parameter(name).data = value
    for name in ("model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.k_proj", "model.layers.2.mlp.down_proj", "lm_head"):
        theirs, ours, stats = met(module, name, batches), met(treated, name, batches), found[f"{name}.weight"]
        assert stats.count == len(ours)
        torch.testing.assert_close(stats.covariance.double(), ours.T @ ours, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(stats.drift.double(), (theirs - ours).T @ ours, rtol=1e-3, atol=1e-3)
        assert stats.drift.abs().max() > 0.01 * stats.covariance.abs().max()
    assert not sweep.chronicle.events


def test_what_no_unit_that_shares_the_inputs_asks_for_is_not_measured():
    asked = {
        "model.layers.0.self_attn.k_proj.weight": NEEDS,
        "model.layers.1.mlp.down_proj.weight": {Need.COVARIANCE},
        "lm_head.weight": set(),
    }
    _, _, _, every, _, _ = swept("llama")
    _, _, made, found, _, sweep = swept("llama", asked=asked)
    first, second = ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight")
    assert torch.equal(found[first].covariance, every[first].covariance) and torch.equal(found[first].drift, every[first].drift)
    assert found[second].covariance is not None and found[second].drift is None
    others = [stats for name, stats in found.items() if "layers.0.self_attn" not in name and name != second]
    assert others and all(stats.moment is None and stats.drift is None for stats in others)
    assert all(stats.count == every[name].count for name, stats in found.items()) and not sweep.chronicle.events


@pytest.mark.parametrize("name", ["llama", "t5", "gpt2", "qwen3_moe", "resnet"])
def test_the_original_gives_what_it_gives_alone_and_the_compressed_model_too(name):
    module, batches, _, found, outputs, _ = swept(name)
    _, _, _, alone, others, _ = swept(name, alongside=False)
    with torch.no_grad():
        for index, batch in enumerate(batches):
            assert torch.equal(outputs[len(batches) + index], output_tensor(call(module, batch))[0])
            assert torch.equal(outputs[index], others[index])
    assert found.keys() == alone.keys() and any(stats.drift is not None for stats in found.values())
    for name, stats in found.items():
        assert stats.count == alone[name].count and alone[name].drift is None
        assert stats.covariance is None or torch.equal(stats.covariance, alone[name].covariance)


def test_experts_are_told_not_to_have_it():
    _, _, _, found, _, sweep = swept("qwen3_moe")
    assert all(stats.drift is None for name, stats in found.items() if "experts." in name)
    assert any("each expert is made to give what it gives on its own inputs" in event for event in sweep.chronicle.events)


def test_dropped_blocks_are_the_originals_all_the_same():
    module, batches, _, _, outputs, _ = swept("llama", dropped=frozenset({"model.layers.1"}))
    with torch.no_grad():
        for index, batch in enumerate(batches):
            assert torch.equal(outputs[len(batches) + index], output_tensor(call(module, batch))[0])


def test_of_ranks_each_has_the_drift_of_all(together):
    built = [zoo.build("llama") for _ in range(2)]
    whole = swept("llama")[3]

    def work(ranks):
        return swept("llama", built=built[ranks.rank], ranks=ranks)[3]

    for found in together(work):
        for name, stats in found.items():
            if stats.drift is not None:
                torch.testing.assert_close(stats.drift, whole[name].drift, rtol=1e-3, atol=1e-3)


def test_the_original_does_not_wait_where_what_it_meets_is_summed(monkeypatch):
    """Of an input that is measured in both models, all the compressed model's are there at once and one of the original's."""
    waiting: dict[str, list[int]] = {}

    def treated(sweep, unit, name, arrivals):
        originals = [index for index, _ in arrivals if not sweep.originals.compressed(index)]
        waiting.setdefault(name, []).append(len(originals))
        assert len(arrivals) - len(originals) == sweep.originals.treated > 1
        return treat(sweep, unit, name, arrivals)

    treat = Sweep._treat_stage
    monkeypatch.setattr(Sweep, "_treat_stage", treated)
    _, batches, _, found, _, _ = swept("llama")
    inside = {name: counts for name, counts in waiting.items() if "layers" in name}
    assert len(inside) >= 12 and all(counts == [0] for counts in inside.values())
    assert waiting["lm_head"] == [len(batches)]
    assert all(found[f"{name}.weight"].drift is not None for name in inside)


def test_a_block_behind_a_dropped_one_meets_both_models():
    _, _, _, found, _, _ = swept("llama", dropped=frozenset({"model.layers.1"}))
    assert not any("layers.1." in name for name in found)
    assert all(stats.drift is not None for name, stats in found.items() if "layers.2." in name)
