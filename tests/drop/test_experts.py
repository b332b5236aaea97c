import pytest
import torch

import modicum
from modicum.core.errors import ModelError
from modicum.drop import Experts
from modicum.drop.experts import expert_sites
from modicum.models.open import open_model
from modicum.sweep import rehearse
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
    assert {name.rpartition("[")[2] for name in change.forms} == {"2]"} and len(change.events) == len(script.stacks)


def test_what_is_left_out_adds_nothing_and_the_rest_is_as_it_was(moe, tmp_path):
    module, batches, model, _ = moe
    result = modicum.fit(module, method="experts keep=0.5", data=batches, target="modicum", out=tmp_path / "out")
    loaded = dict(result.model.named_parameters())
    kept = dict(module.named_parameters())
    for name in {unit.parameter for unit in model.units.values() if unit.kind == "expert"}:
        gone = [e for e in range(len(loaded[name])) if not loaded[name][e].any()]
        assert len(gone) == len(loaded[name]) // 2
        assert all(torch.equal(loaded[name][e], kept[name][e]) for e in range(len(loaded[name])) if e not in gone)
    assert result.receipt["bytes"]["actual"] < result.receipt["bytes"]["original"]


def test_keeping_all_changes_nothing(moe):
    _, batches, model, script = moe
    assert Experts(keep=1.0).reshape(model, script, batches, SpillPool(None)).forms == {}


def test_a_budget_may_leave_experts_out(moe, tmp_path):
    module, batches, model, _ = moe
    result = modicum.fit(
        module, "5bpw", data=batches, target="modicum", menu="int8 group=32,experts keep=0", out=tmp_path / "out", search_time=0
    )
    assert any(text == "experts keep=0.0" for text in result.plan.options.values())
    assert result.receipt["bytes"]["actual"] <= 5 * model.parameters / 8


def test_a_model_without_experts_is_told():
    module, batches = zoo.build("llama")
    model = open_model(module)
    with pytest.raises(ModelError, match="must have stacked experts"):
        Experts().reshape(model, rehearse(model, batches[0]), batches, SpillPool(None))
