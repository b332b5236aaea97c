import copy

import pytest
import torch

import modicum
from modicum.core.errors import ModelError
from modicum.core.method import Need
from modicum.drop import Experts
from modicum.drop._family import SiteCutter, cut_sites
from modicum.drop.experts import expert_sites
from modicum.forms import Dense
from modicum.models.open import open_model
from modicum.numerics.mixture import Mixture
from modicum.sweep import Sweep, rehearse
from modicum.sweep.ranks import LONE
from modicum.sweep.spill import SpillPool
from modicum.testing import zoo


@pytest.fixture(scope="module")
def moe():
    module, batches = zoo.build("qwen3_moe")
    model = open_model(module)
    return module, batches, model, rehearse(model, batches[0])


def test_one_site_for_each_expert_with_all_its_products(moe):
    _, _, model, script = moe
    sites = expert_sites(model, script)
    experts = [unit for unit in model.units.values() if unit.kind == "expert"]
    assert sorted(unit.name for site in sites.values() for unit in site.units) == sorted(unit.name for unit in experts)
    assert all(
        site.kind == "cut" and site.axes[-1].side == "columns" and len({unit.expert for unit in site.units}) == 1 for site in sites.values()
    )


def test_an_expert_that_adds_least_goes_first(moe):
    module, batches = zoo.build("qwen3_moe")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("experts.down_proj"):
                parameter[2] *= 1e-3
    model = open_model(module)
    script = rehearse(model, batches[0])
    count = len(next(p for n, p in module.named_parameters() if n.endswith("experts.down_proj")))
    change = Experts(keep=1 - 1 / count).reshape(model, script, batches, SpillPool(None))
    assert {name.rpartition("[")[2] for name, form in change.forms.items() if form.kind == "cut"} == {"2]"}
    assert len([event for event in change.events if "[2]:experts: keeps 0 of 1" in event]) == len(script.stacks)


def test_what_is_left_out_adds_nothing_and_the_rest_is_as_it_was(moe, tmp_path):
    """But for the last products of those that remain, which may have been refit."""
    module, batches, model, script = moe
    result = modicum.fit(module, method="experts keep=0.5", data=batches, target="modicum", out=tmp_path / "out")
    loaded = dict(result.model.named_parameters())
    kept = dict(module.named_parameters())
    for name in {unit.parameter for unit in model.units.values() if unit.kind == "expert"}:
        gone = [e for e in range(len(loaded[name])) if not loaded[name][e].any()]
        assert len(gone) == len(loaded[name]) // 2
        same = [e for e in range(len(loaded[name])) if torch.equal(loaded[name][e], kept[name][e])]
        assert name.endswith("down_proj") or sorted([*gone, *same]) == list(range(len(loaded[name])))
    assert result.receipt["bytes"]["actual"] < result.receipt["bytes"]["original"]


def paired(dtype=torch.float32):
    """A mixture whose experts come in pairs: chosen together, they see the same and answer differently, so that each can stand in for the other."""
    module, _ = zoo.build("qwen3_moe", dtype=dtype)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(("experts.gate_up_proj", "mlp.gate.weight")) and len(parameter) == 8:
                parameter[1::2] = parameter[::2].clone()
            elif name.endswith("experts.down_proj"):
                parameter.mul_(4)
    generator = torch.Generator().manual_seed(0)
    return module, [{"input_ids": torch.randint(3, 256, (8, 32), generator=generator)} for _ in range(6)]


@pytest.fixture(scope="module")
def pairs():
    module, batches = paired()
    model = open_model(module)
    return module, batches, model, rehearse(model, batches[0])


def divergence(module, forms, model, batches):
    """KL per token with the forms in place."""
    changed = copy.deepcopy(module)
    parameters = dict(changed.named_parameters())
    with torch.no_grad():
        for name, form in forms.items():
            parameters[model.units[name].parameter][model.units[name].expert] = model.units[name].stored(form.dense())
        pairs = [(module(**batch).logits.log_softmax(-1), changed(**batch).logits.log_softmax(-1)) for batch in batches]
    return sum(float((p.exp() * (p - q)).sum(-1).mean()) for p, q in pairs) / len(pairs)


def test_others_make_up_for_what_is_left_out_on_other_tokens_too(pairs):
    module, batches, model, script = pairs
    change = Experts(keep=0.875).reshape(model, script, batches[:4], SpillPool(None))
    cuts = {name: form for name, form in change.forms.items() if form.kind == "cut"}
    assert all(name.rpartition("[")[0].endswith("down_proj") for name in change.forms.keys() - cuts.keys())
    told = [event for event in change.events if "1 of 8 experts left out, the others make up for" in event]
    assert len(told) == len(script.stacks) and all(int(event.partition("for ")[2].partition("%")[0]) >= 95 for event in told)
    assert divergence(module, change.forms, model, batches[4:]) < 0.05 * divergence(module, cuts, model, batches[4:])


def test_refit_experts_are_written_and_loaded(pairs, tmp_path):
    module, batches, model, script = pairs
    result = modicum.fit(module, method="experts keep=0.875", data=batches, target="modicum", out=tmp_path / "out")
    loaded, kept = dict(result.model.named_parameters()), dict(module.named_parameters())
    for name in (f"{stack}.down_proj" for stack in script.stacks):
        gone = [e for e in range(8) if not loaded[name][e].any()]
        moved = [e for e in range(8) if not torch.equal(loaded[name][e], kept[name][e]) and e not in gone]
        assert len(gone) == 1 and gone[0] ^ 1 in moved
        both = kept[name][gone[0]] + kept[name][gone[0] ^ 1]  # what two add that see the same with the same weight
        assert (loaded[name][gone[0] ^ 1] - both).norm() < 0.2 * kept[name][gone[0]].norm()
    assert sum("the others make up for" in event for event in result.receipt["events"]) == len(script.stacks)


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3", "gpt_oss", "llama4", "jamba"])
def test_a_module_loses_what_the_refit_says(name):
    """The output of the first stack's module without its first expert, and with the others refit, on all tokens of calibration."""
    module, batches = zoo.build(name)
    model = open_model(module)
    script, found = rehearse(model, batches[0]), {}
    Sweep(model, batches, script, lambda stage: found.update(stage.stats), needs={Need.ROUTED}).finish()
    stack = next(iter(script.stacks))
    parts = {unit: stats.routed for unit, stats in found.items() if stats.routed is not None and model.units[unit].module == stack}
    gone = next(unit for unit, met in parts.items() if met)
    refit = Mixture(parts).refit({gone: model.matrix(model.units[gone])}, [unit for unit in parts if unit != gone], 0.01, 2)

    def outputs(values):
        changed, seen = copy.deepcopy(module), []
        owner = changed.get_submodule(stack)
        owner.register_forward_hook(lambda _, args, output: seen.append(output.reshape(-1, output.shape[-1])))
        with torch.no_grad():
            for unit, value in values.items():
                dict(changed.named_parameters())[unit.parameter][unit.expert] = unit.stored(value)
            for batch in batches:
                changed(**batch)
        return torch.cat(seen)

    cut = {model.units[gone]: torch.zeros(model.units[gone].shape)}
    after = cut | {model.units[unit]: model.matrix(model.units[unit]) + change for unit, change in refit.changes.items()}
    whole = outputs({})
    assert float((outputs(cut) - whole).square().sum()) == pytest.approx(float(refit.before.sum()), rel=1e-3)
    assert float((outputs(after) - whole).square().sum()) == pytest.approx(float(refit.after.sum()), rel=1e-3)
    assert bool(refit.changes) == (name != "llama4")  # whose module adds nothing up


def test_rows_that_are_felt_more_count_more(pairs):
    _, batches, model, script = pairs
    stages = []
    Sweep(model, batches, script, stages.append, needs=Experts.needs).finish()
    stage = next(stage for stage in stages if stage.units[0].name.endswith("down_proj[0]"))
    weight, felt = lambda unit: model.matrix(unit), torch.zeros(stage.units[0].shape[0])
    felt[3] = 5.0
    plain = Experts(damping=10.0).remaining(stage.units, stage.stats, weight, {})
    third = Experts(damping=10.0).remaining(stage.units, stage.stats, lambda unit: weight(unit)[3:4], {})
    weighed = Experts(damping=10.0).remaining(stage.units, stage.stats, weight, {unit.name: felt for unit in stage.units})
    least = min(plain, key=lambda name: plain[name])
    assert weighed[least] == pytest.approx(third[least], rel=1e-3) and weighed[least] != pytest.approx(plain[least], rel=1e-4)


def test_a_fixed_damping_is_obeyed(pairs):
    _, batches, model, script = pairs
    forms = [Experts(keep=0.875, damping=damping).reshape(model, script, batches[:4], SpillPool(None)).forms for damping in (0.1, 10.0)]
    refit = [name for name in forms[0] if all(name in made and made[name].kind == "dense" for made in forms)]
    moved = [sum(float((made[name].dense() - model.matrix(model.units[name])).norm()) for name in refit) for made in forms]
    assert refit and moved[1] < 0.5 * moved[0]


def test_what_a_change_of_depth_made_is_refit_not_the_original(pairs):
    """The others make up for what the expert adds now, in one sweep for all stacks."""
    _, batches, model, script = pairs
    sites = expert_sites(model, script)
    stacks = list(script.stacks)
    wanted = {name: (site, Experts(keep=0.0), []) for name, site in sites.items() if "[3]" in name}
    lasts = [site.axes[-1].unit for site in sites.values()]
    start = {name: Dense(2 * model.matrix(model.units[name])) for name in lasts if model.units[name].module == stacks[0]}
    plain, begun = (cut_sites(model, script, batches, SpillPool(None), wanted, start=forms).forms for forms in ({}, start))
    assert plain.keys() == begun.keys() and {model.units[name].module for name in plain} == set(stacks)
    for name in (name for name in plain if plain[name].kind == "dense"):
        factor = 2.0 if name in start else 1.0
        torch.testing.assert_close(begun[name].dense(), factor * plain[name].dense(), rtol=1e-4, atol=1e-4)


def test_stored_dtypes_stay():
    module, batches = paired(torch.bfloat16)
    model = open_model(module)
    forms = Experts(keep=0.875).reshape(model, rehearse(model, batches[0]), batches, SpillPool(None)).forms
    assert {(form.kind, form.dtype) for form in forms.values()} == {("cut", torch.bfloat16), ("dense", torch.bfloat16)}


def test_harm_is_what_others_cannot_make_up_for(pairs, monkeypatch, tmp_path):
    """Little for the lesser expert of each pair, for which the other stands in; the other's own remains, so that both together are not cheap."""
    module, batches, _, script = pairs

    def harms(out):
        found = modicum.measure(module, data=batches, target="modicum", menu="experts keep=0", search_time=0, out=tmp_path / out).findings
        return {name: cut["experts keep=0.0"].harm for name, cut in found.cuts.items()}

    helped = harms("helped")
    monkeypatch.setattr(Experts, "remaining", SiteCutter.remaining)
    alone = harms("alone")
    shares = {name: helped[name] / alone[name] for name in alone}
    both = [(shares[f"{stack}[{at}]:experts"], shares[f"{stack}[{at + 1}]:experts"]) for stack in script.stacks for at in (0, 2, 4, 6)]
    assert len(shares) == 24 and all(min(pair) < 0.1 and 0.8 < max(pair) <= 1 for pair in both)


@pytest.mark.slow
def test_harms_of_several_ranks_are_those_of_one(together, tmp_path):
    """Each rank has some of the micro-batches; what the others' experts met is sent, in the order of one process."""
    modules = [paired()[0] for _ in range(3)]

    def work(ranks):
        module = modules[2 if ranks is LONE else ranks.rank]
        out = tmp_path / f"of-{ranks.count}"
        found = modicum.measure(module, data=paired()[1], target="modicum", menu="experts keep=0", out=out, ranks=ranks).findings
        return {name: cut["experts keep=0.0"].harm for name, cut in found.cuts.items()}

    alone, (first, second) = work(LONE), together(work)
    assert first == second and first == pytest.approx(alone, rel=1e-2, abs=1e-3 * max(alone.values()))


def test_keeping_all_changes_nothing(moe):
    _, batches, model, script = moe
    assert Experts(keep=1.0).reshape(model, script, batches, SpillPool(None)).forms == {}


def test_a_budget_may_leave_experts_out(moe, tmp_path):
    module, batches, model, _ = moe
    result = modicum.fit(
        module, "5bpw", data=batches, target="modicum", menu="nearest bits=8 group=32,experts keep=0", out=tmp_path / "out", search_time=0
    )
    assert any(text == "experts keep=0.0" for text in result.plan.options.values())
    assert result.receipt["bytes"]["actual"] <= 5 * model.parameters / 8


def test_a_model_without_experts_is_told():
    module, batches = zoo.build("llama")
    model = open_model(module)
    with pytest.raises(ModelError, match="must have stacked experts"):
        Experts().reshape(model, rehearse(model, batches[0]), batches, SpillPool(None))
