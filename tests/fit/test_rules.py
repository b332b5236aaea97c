"""Rules by layer: what they say holds on the layers that they mean, in the files too, and on no other."""

import json
import re

import pytest
import torch
import transformers

import modicum
from modicum.core.errors import ModicumError, SettingError
from modicum.core.option import Option
from modicum.core.plan import Plan
from modicum.core.rules import Rule, rules_of
from modicum.table.menu import everything
from modicum.table.rules import ruled

SETTINGS = {"harm": "error", "search_time": 0.0, "target": "modicum", "menu": "int2,int4"}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=64, max_position_embeddings=32)).eval()
    return module, [{"input_ids": torch.randint(3, 64, (2, 16))} for _ in range(3)]


@pytest.fixture(scope="module")
def measured(model, tmp_path_factory):
    return modicum.measure(model[0], data=model[1], out=tmp_path_factory.mktemp("measured") / "m", **SETTINGS | {"menu": "int2,int4,int8"})


def options(result):
    """What every layer got, by its module's name."""
    receipt = json.loads((result.out / "receipt.json").read_text())
    return {site["site"].removesuffix(".weight"): site["option"] for site in receipt["sites"] if site["kind"] in ("unit", "fused")}


def expected(name):
    """As somebody would work it out by hand: what may stand on a layer under the rules of the test."""
    if name == "lm_head":
        return r"gptq bits=8 group=32"
    if "down_proj" in name:
        return r"hqq bits=(2|4) group=16"
    if name.startswith("model.layers.1.self_attn"):
        return r"keep"
    return r"keep|(gptq|nearest) bits=(2|4).*"


RULES = ["*down_proj: method=hqq group=16", "lm_head: gptq bits=4 group=32", "lm_head: bits=8", "model.layers.1.self_attn.*: keep"]


def test_what_rules_say_holds_where_they_say_it_and_nowhere_else(model, tmp_path):
    result = modicum.fit(model[0], "14bpw", data=model[1], out=tmp_path / "out", set=RULES, **SETTINGS)
    found = options(result)
    assert len(found) == 16
    for name, option in found.items():
        assert re.fullmatch(expected(name), option), (name, option)
    receipt = result.receipt
    assert receipt["request"]["set"] == RULES and receipt["bytes"]["predicted"] == receipt["bytes"]["actual"] <= receipt["bytes"]["allowed"]
    units = json.loads((result.out / "modicum.json").read_text())["units"]
    assert units["lm_head.weight"]["form"]["bits"] == 8 and units["lm_head.weight"]["form"]["group"] == 32
    assert {units[f"model.layers.{i}.mlp.down_proj.weight"]["form"]["group"] for i in (0, 1)} == {16}
    assert not any("layers.1.self_attn" in name for name in units)
    again = modicum.fit(model[0], config=result.out / "run.yaml", data=model[1], out=tmp_path / "again")
    assert (again.out / "model.safetensors").read_bytes() == (result.out / "model.safetensors").read_bytes()


def test_one_method_everywhere_but_where_rules_say_otherwise(model, tmp_path):
    rules = {"lm_head": "bits=8", "*q_proj": "nearest bits=3 group=16", "*mlp*": "group=8", "v_proj": "keep"}
    found = options(modicum.fit(model[0], method="gptq bits=4 group=32", data=model[1], target="modicum", out=tmp_path / "out", set=rules))
    assert found.pop("lm_head") == "gptq bits=8 group=32"
    assert found.pop("model.embed_tokens") == "gptq bits=4 group=32 moment=felt"  # whose inputs nobody sees
    for name, option in found.items():
        want = {"q_proj": "nearest bits=3 group=16", "v_proj": "keep"}.get(name.rpartition(".")[2])
        assert option == want or (want is None and option == f"gptq bits=4 group={8 if '.mlp.' in name else 32}"), (name, option)


def test_a_measurement_serves_rules_that_it_has_options_for(model, measured, tmp_path):
    result = modicum.fit(model[0], "14bpw", measured=measured, set={"*_proj": "bits=4"}, out=tmp_path / "out")
    assert {option for name, option in options(result).items() if name.endswith("_proj")} == {"gptq bits=4"}
    with pytest.raises(SettingError, match=r"set: 'gptq bits=5' was not measured on .*Measure again with the same --set"):
        modicum.fit(model[0], "14bpw", measured=measured, set={"lm_head": "bits=5"}, out=tmp_path / "no")


def test_a_measurement_under_rules_is_served_under_them(model, tmp_path):
    modicum.measure(model[0], data=model[1], out=tmp_path / "m", set=["lm_head: bits=8", "down_proj: bits=3 group=16"], **SETTINGS)
    found = options(modicum.fit(model[0], "14bpw", measured=tmp_path / "m", out=tmp_path / "out"))
    assert found["lm_head"] == "gptq bits=8" and found["model.layers.0.mlp.down_proj"] == "gptq bits=3 group=16"


def test_the_default_menu_under_rules(model, tmp_path):
    words = {"harm": "error", "search_time": 0.0, "target": "modicum", "dry_run": True}
    sites = modicum.fit(model[0], "14bpw", data=model[1], set={"lm_head": "bits=8", "q_proj": "group=16"}, **words).receipt["sites"]
    found = {site["name"]: site["options"] for site in sites}
    assert set(found["lm_head.weight"]) == {"gptq bits=8", "gptq bits=8 group=0"}
    assert all(" group=16" in option for option in found["model.layers.0.self_attn.q_proj.weight"])
    assert any("eora" in option for option in found["model.layers.0.self_attn.q_proj.weight"])
    assert "keep" in found["model.layers.0.self_attn.k_proj.weight"]


def test_later_rules_count_more():
    menu = [Option.parse("gptq bits=2"), Option.parse("gptq bits=4"), Option.parse("float8")]
    told = lambda *rules: [str(option) for option in ruled(menu, rules_of([f"x: {rule}" for rule in rules]))]
    assert told("bits=8") == ["gptq bits=8"] and told("group=16") == ["gptq bits=2 group=16", "gptq bits=4 group=16"]
    assert told("bits=8", "bits=3") == ["gptq bits=3"] and told("bits=8", "float8") == ["float8"]
    assert told("keep") == ["keep"] and told("keep", "bits=3") == ["gptq bits=3"]
    assert told("method=nearest") == ["nearest bits=2", "nearest bits=4"] and told("method=float8") == ["float8"]
    assert told("method=svd") == ["svd keep=0.25", "svd"] and told("svd keep=0.25", "keep=0.75") == ["svd keep=0.75"]
    assert told("gptq bits=2 | eora rank=4", "rank=8 bits=3") == ["gptq bits=3 | eora rank=8"]
    assert set(told("bits=3")) < {str(option) for option in everything(64)}


@pytest.mark.parametrize(
    "rule, said",
    [
        ("lm_head bits=8", "must have a pattern, a colon, a space"),
        ("lm_head:", "must have a pattern"),
        ("lm_head: bist=8", "'bist' is no setting of a method. Did you mean bits"),
        ("lm_head: bits=9", ": bits: must lie between 2 and 8, got 9"),
        ("lm_head: bits=many", "bits: must be a whole number, got 'many'"),
        ("lm_head: bits=8 bits=4", "bits is given twice"),
        ("lm_head: bits=8 group", "got 'group'"),
        ("lm_head: method=gptk", "Did you mean gptq"),
        ("lm_head: method=svd bits=3", "'bits' is no setting of factor/svd"),
        ("lm_head: gptq bits=4 |", "empty step"),
        ("lm_head: ziplm keep=0.5", "must not be of one layer"),
        ("lm_head: method=eora", "mends what another leaves"),
    ],
)
def test_what_is_no_rule_is_told_in_one_sentence(rule, said):
    with pytest.raises(SettingError) as told:
        rules_of([rule])
    assert said in str(told.value) and str(told.value).startswith(f"set {rule.strip()!r}: ")


@pytest.mark.parametrize("given", [5, [5], [None], ["lm_head: bits=8", {}]])
def test_rules_of_other_kinds_are_refused(given):
    with pytest.raises(SettingError, match="set: a rule must be a text"):
        rules_of(given)


def refused(model, tmp_path, rules, **settings):
    words = {"harm": "error", "search_time": 0.0, "data": model[1], "out": tmp_path / "out", "menu": "int4", "bpw": 6}
    with pytest.raises(ModicumError) as told:
        modicum.fit(model[0], set=rules, **words | settings)
    assert not list(tmp_path.iterdir())
    return str(told.value)


def test_a_rule_that_cannot_hold_is_refused_before_anything_is_measured(model, tmp_path):
    ours = {"target": "modicum"}
    assert "matches none. Did you mean lm_head?" in refused(model, tmp_path, {"lm_heat": "bits=8"}, **ours)
    assert (
        "set 'lm_head: group=24': target transformers cannot hold it on lm_head.weight, group 24 does not divide rows of 32: use group=16, 32, 0"
        in (refused(model, tmp_path, {"lm_head": "group=24"}, target="transformers"))
    )
    said = refused(model, tmp_path, {"lm_head": "svd keep=0.5"}, target="transformers", group=16)
    assert "target transformers cannot hold it there. It can have keep, gptq bits=4 group=16" in said and said.endswith(
        "or pass --target modicum."
    )
    said = refused(model, tmp_path, {"embed_tokens": "bits=8"}, target="transformers")
    assert "reaches none: model.embed_tokens stays as it is" in said
    assert "--keep names all of them too" in refused(model, tmp_path, {"lm_head": "bits=8"}, keep=["lm_head"], **ours)
    assert "the smallest for target modicum" in refused(model, tmp_path, {"*": "bits=8"}, bpw=4, **ours)


def test_layers_that_are_one_choice_must_be_meant_together(model, tmp_path):
    said = refused(model, tmp_path, {"q_proj": "bits=8"}, target="transformers")
    assert said.startswith("set: must say the same of the layers of model.layers.0.self_attn.[q_proj,k_proj,v_proj], which are one choice")
    assert "says 'bits=8' of model.layers.0.self_attn.q_proj and nothing of model.layers.0.self_attn.k_proj." in said
    words = {"harm": "error", "data": model[1], "menu": "int4", "group": 16, "bpw": 9, "dry_run": True, "target": "transformers"}
    sites = modicum.fit(model[0], set=["q_proj: bits=8", "*.[kv]_proj: bits=8", "*: bits=4"], **words).receipt["sites"]
    assert {option for site in sites for option in site["options"]} == {"gptq bits=4 group=16 symmetric=true"}


def test_what_a_rule_does_not_reach_is_told(model, tmp_path):
    result = modicum.fit(
        model[0], method="nearest bits=4 group=16", data=model[1], set={"*": "group=32"}, target="transformers", out=tmp_path / "out"
    )
    (told,) = (event for event in result.receipt["events"] if event.startswith("set "))
    assert told == "set '*: group=32': 1 of the layers that it names stay as they are for target transformers: model.embed_tokens."


def test_a_plan_has_no_rules_beside_it(model, tmp_path):
    assert "must not stand beside a plan" in refused(model, tmp_path, {"lm_head": "bits=8"}, bpw=None, plan=Plan("modicum"))


def test_rules_are_part_of_what_is_asked():
    from modicum.measure.settings import Settings

    prints = {Settings(set=rules_of(rules)).fingerprint("a", {}) for rules in ((), ["a: bits=3"], ["a: bits=4"], ["b: bits=3"])}
    assert len(prints) == 4 and Rule.parse("a: bits=3") == Rule.parse(" a:  bits=3 ")


def test_what_another_version_began_is_begun_again(monkeypatch):
    from modicum.measure import settings

    before = settings.Settings().fingerprint("a", {})
    monkeypatch.setattr(settings, "__version__", "99.0")
    assert settings.Settings().fingerprint("a", {}) != before
