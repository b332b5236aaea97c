"""Cuts of the same width in all blocks: Transformers itself loads them narrower, from a config with other numbers."""

import json

import pytest
import torch
import transformers

import modicum
from modicum.core.budget import Budget
from modicum.core.errors import SettingError
from modicum.core.option import Option
from modicum.core.plan import Plan
from modicum.core.unit import Axis
from modicum.export.narrow import Incision
from modicum.export.uniform import narrower
from modicum.fit.request import Request
from modicum.measure.settings import common
from modicum.measure.subject import Subject
from modicum.testing import zoo

QUANTIZED = "nearest bits=4 group=8 symmetric=true"
# What the config of each architecture can say; the others have no number for it, or one that other parameters hang on too.
WIDTHS = {
    "llama": {"ffn", "heads"}, "qwen2": {"ffn", "heads"}, "qwen3": {"ffn", "heads"}, "gemma2": {"ffn", "heads"}, "gemma3": {"ffn", "heads"},
    "qwen3_moe": {"ffn", "heads"}, "phi3": {"ffn", "heads"}, "vit": {"ffn", "heads"}, "gpt_neox": {"ffn"}, "opt": {"ffn"}, "bert": {"ffn"},
    "wav2vec2": {"ffn"}, "gpt2": set(), "falcon": set(), "bloom": set(), "t5": set(), "deepseek_v3": set(),
}  # fmt: skip
NUMBERS = ("intermediate_size", "ffn_dim", "num_attention_heads", "num_key_value_heads", "head_dim", "num_hidden_layers")


def opened(name, menu="ziplm keep=0.5"):
    model, batches = zoo.build(name)
    request = Request(budget=Budget(size=10**9), **common(menu=f"{menu},nearest bits=4 group=8", group=8))
    return model, batches, Subject.open(model, request, batches)


def planned(subject, kinds, weights=""):
    """A plan that cuts every cut of some kinds as the target offers it, and treats every weight alike."""
    sizing, options = subject.sizing("transformers"), {}
    table = sizing.table()
    for kind in kinds:
        for member in sizing.groups[f"all blocks:{kind}"]:
            options[member.name] = table.choices[f"all blocks:{kind}"][1].option
    for site in sizing.target.sites() if weights else ():
        if sizing.target.adapt(site, Option.parse(weights)) is not None:
            options[site.name] = weights
    return Plan("transformers", options)


# In the short form heads and channels, experts and fused projections, channels alone, and nothing.
SHORT = ("llama", "qwen3_moe", "phi3", "gpt_neox", "gpt2", "deepseek_v3")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in SHORT else pytest.mark.slow) for name in WIDTHS])
def test_what_is_offered_is_loaded_by_transformers(tmp_path, name):
    """All kinds at once, quantized as well; outputs are compared with those of the dequantized weights inside ``fit``."""
    model, batches, subject = opened(name)
    offered = {site.rpartition(":")[2] for site in subject.sizing("transformers").table().choices if site.startswith("all blocks:")}
    assert offered == WIDTHS[name]
    if not offered:
        return
    plan = planned(subject, offered, QUANTIZED)
    result = modicum.fit(model, plan=plan, data=batches, out=tmp_path / "out")
    assert result.receipt["verification"]["loader"] == "transformers.from_pretrained"
    assert result.receipt["bytes"]["actual"] == result.receipt["bytes"]["predicted"]
    before, after = model.config.to_dict(), json.loads((tmp_path / "out" / "config.json").read_text())
    changed = {number for number in NUMBERS if number in after and after[number] != before.get(number)}
    assert changed - {"head_dim"} and after.get("head_dim", 16) == 16
    units = {unit.name: unit for unit in subject.model.units.values()}
    loaded = dict(result.model.named_modules())
    for cut in plan.options.keys() & subject.cuts.keys():
        consumer = units[subject.cuts[cut].axes[-1].unit]
        assert loaded[consumer.module].in_features == consumer.shape[1] // 2


def test_widths_that_differ_between_blocks_are_refused(tmp_path):
    model, batches, subject = opened("llama")
    first = next(name for name in subject.cuts if name.endswith(":ffn"))
    with pytest.raises(SettingError, match="its config has no numbers for these widths, which must be the same in all blocks"):
        modicum.fit(model, plan=Plan("transformers", {first: "ziplm keep=0.5"}), data=batches, out=tmp_path / "out")


def test_cuts_beside_a_dropped_block_are_loaded_too(tmp_path):
    model, batches, subject = opened("llama")
    plan = planned(subject, {"ffn", "heads"}, QUANTIZED)
    plan.options = {name: option for name, option in plan.options.items() if not name.startswith("model.layers.1.")}
    plan.options["model"] = "blocks count=1 first=1"
    result = modicum.fit(model, plan=plan, data=batches, out=tmp_path / "out")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.num_hidden_layers, config.intermediate_size, config.num_key_value_heads) == (model.config.num_hidden_layers - 1, 64, 1)
    assert result.receipt["verification"]["logits"]["largest"] < 1e-5


def test_a_number_the_config_refuses_is_not_offered():
    """Llama's heads must divide its width: three quarters of four heads do not."""
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, vocab_size=256
    )
    model = transformers.LlamaForCausalLM(config)
    chance = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(0, 256, (1, 16), generator=chance)} for _ in range(3)]
    request = Request(budget=Budget(size=10**9), **common(menu="ziplm keep=0.75,ziplm keep=0.5,nearest bits=4 group=8", group=8))
    table = Subject.open(model, request, batches).sizing("transformers").table()
    assert [choice.option for choice in table.choices["all blocks:heads"]] == ["keep", "ziplm keep=0.5"]
    assert [choice.option for choice in table.choices["all blocks:ffn"]] == [
        "keep",
        "ziplm keep=0.75 multiple=16",
        "ziplm keep=0.5 multiple=16",
    ]


def test_a_width_that_another_parameter_shares_is_no_number_of_its_own():
    """Where the inner width is the outer width, one number says both."""
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4, vocab_size=256
    )
    model, subject = transformers.LlamaForCausalLM(config), None
    from modicum.models.open import open_model

    subject = open_model(model)
    units = {name: subject.units[f"model.layers.0.mlp.{name}.weight"] for name in ("gate_proj", "up_proj", "down_proj")}
    groups = tuple((channel,) for channel in range(64))
    cuts = {
        unit.name: Incision.along(unit, Axis(unit.name, "columns" if name == "down_proj" else "rows", groups), range(32))
        for name, unit in units.items()
    }
    found = narrower(model, config, cuts)
    assert found is not None and (found.intermediate_size, found.hidden_size) == (32, 64)
    del cuts[units["up_proj"].name]
    assert narrower(model, config, cuts) is None


@pytest.mark.slow
def test_a_budget_is_met_by_cuts_where_bits_alone_cannot(tmp_path):
    """Below two bits by every weight, uniform cuts are what is left: the smallest that can be reached is smaller with them."""
    with_cuts = modicum.fit("demo", "1.9bpw", samples=16, test_samples=8, search_time=0, target="transformers", out=tmp_path / "out")
    assert with_cuts.receipt["bytes"]["actual"] <= with_cuts.receipt["bytes"]["allowed"]
    (cut,) = [row for row in with_cuts.receipt["sites"] if row["kind"] == "cut"]
    assert cut["site"] == "all blocks:ffn" and cut["option"].startswith("ziplm")
    assert sum(row["harm"] for row in with_cuts.receipt["sites"]) == pytest.approx(with_cuts.receipt["predicted_harm"])
