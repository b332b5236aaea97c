"""The bytes on disk are those promised, within the budget, and none that would still help are left over."""

import json
import tempfile

import pytest
import torch
from safetensors.torch import load_file

import modicum
from modicum.allocate import ALLOCATORS
from modicum.core.plan import Plan
from modicum.core.tensorfile import TensorFile
from modicum.testing import zoo

# Small models on which each target has room: (zoo name, target) → bits per weight from scarce to plenty.
LADDERS = {
    ("llama", "transformers"): (7.0, 11.0, 33.0),
    ("llama", "modicum"): (3.9, 6.0, 33.0),
    ("gpt2", "modicum"): (4.5, 6.0),
    ("qwen3_moe", "transformers"): (7.0, 9.0),
    ("mlp", "modicum"): (4.5, 8.0),
}
CHEAP = "nearest bits=4,nearest bits=8"
FAST = {"menu": CHEAP, "harm": "error", "search_time": 0}
# Options of all kinds, so few that a measurement takes little.
MENU = ",".join(f"nearest bits={bits} group=32" for bits in (2, 3, 4, 8))
MENU += ",float8,gptq bits=3 group=32 sweeps=0 | eora rank=2,svd keep=0.5,sparsegpt keep=0.5,ziplm keep=0.5,replaceme count=1"
RUNGS = [(name, target, bpw) for (name, target), ladder in LADDERS.items() for bpw in ladder]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Runs by name, target and budget, each made once, of one model from one measurement: (result, harm table, allowed bytes)."""
    made, known = {}, {}

    def fit(name, target, bpw):
        if name not in known:
            model, batches = zoo.build(name)
            ways = [way for each, way in LADDERS if each == name]
            targets = {"target": ways[0]} if len(ways) == 1 else {}
            out = tmp_path_factory.mktemp("measured") / name
            known[name] = model, modicum.measure(model, out=out, data=batches, menu=MENU, group=32, search_time=0, **targets)
        if (name, target, bpw) not in made:
            out = tmp_path_factory.mktemp("fitted") / "out"
            model, measured = known[name]
            made[name, target, bpw] = chosen(model, out, measured=measured, bpw=bpw, target=target)
        return made[name, target, bpw]

    return fit


def measured_fit(name, out, **settings):
    """A model that is measured and chosen for in one run."""
    model, batches = zoo.tied_twin() if name == "tied_twin" else zoo.build(name)
    return chosen(model, out, data=batches, **settings)


def chosen(model, out, **settings):
    """A result chosen by the table alone, and the table and bytes its allocator was given."""
    seen, choose = [], ALLOCATORS["integer_program"]

    def watched(table, limits, judge=None, **ways):
        seen.append((table, limits["bytes"]))
        return choose(table, limits, judge, **ways)

    ALLOCATORS["integer_program"] = watched
    try:
        return modicum.fit(model, out=out, allocator="integer_program", search_time=0, **settings), *seen[0]
    finally:
        ALLOCATORS["integer_program"] = choose


def weight_bytes(out):
    return sum(path.stat().st_size for path in out.iterdir() if path.name.endswith((".safetensors", ".safetensors.index.json")))


@pytest.fixture(scope="module")
def llama():
    return zoo.build("llama")


# Bytes


@pytest.mark.parametrize("name, target, bpw", RUNGS)
def test_bytes_are_those_predicted_told_and_allowed(fitted, name, target, bpw, picks_of):
    result, table, allowed = fitted(name, target, bpw)
    told = result.receipt["bytes"]
    assert weight_bytes(result.out) == told["predicted"] == told["actual"]
    assert allowed == told["allowed"] == int(bpw * result.source.parameters / 8)
    assert told["actual"] <= min(table.cost(picks_of(result.plan, table)), allowed)
    assert told["bits_per_weight"] == pytest.approx(8 * told["actual"] / result.source.parameters, rel=1e-12)


@pytest.mark.parametrize("name, target, bpw", RUNGS)
def test_what_is_left_over_buys_nothing_that_helps(fitted, name, target, bpw, picks_of):
    result, table, allowed = fitted(name, target, bpw)
    picks = picks_of(result.plan, table)
    upgrades = [
        table.choices[site][index].bytes - table.choices[site][picks[site]].bytes
        for site in table.choices
        if site not in table.children
        for index in table.allowed(site, picks)
        if table.choices[site][index].harm < table.choices[site][picks[site]].harm
    ]
    assert not upgrades or allowed - result.receipt["bytes"]["actual"] < min(upgrades)


@pytest.mark.parametrize("name, target", LADDERS)
def test_a_looser_budget_is_never_worse(fitted, name, target):
    harms = [fitted(name, target, bpw)[0].receipt["predicted_harm"] for bpw in LADDERS[name, target]]
    assert harms == sorted(harms, reverse=True) and harms[0] > harms[-1]


def test_a_site_that_no_option_fits_is_told():
    model, batches = zoo.build("qwen3_moe")  # its experts are 32 wide, which groups of 64 do not divide, and may not stay dense
    with pytest.raises(modicum.SettingError, match="experts.*group"):
        modicum.fit(model, "9bpw", data=batches, target="transformers", group=64, dry_run=True)


def test_a_budget_with_room_for_all_keeps_all(fitted, llama):
    result, _, _ = fitted("llama", "transformers", 33.0)
    assert set(result.plan.options.values()) == {"keep"} and result.receipt["predicted_harm"] == 0
    state = llama[0].state_dict()
    assert all(torch.equal(value, state[name]) for name, value in load_file(result.out / "model.safetensors").items())


@pytest.mark.parametrize("budget", [{"params": 1}, {"size": "100MB"}, {"memory": "1GB", "macs": "100%"}])
def test_a_budget_that_the_model_meets_as_it_is_needs_no_measuring(budget, llama, tmp_path):
    result = modicum.fit(llama[0], data=llama[1], out=tmp_path / "out", page=modicum.report, **budget)
    receipt, state = result.receipt, llama[0].state_dict()
    assert "room for the model as it is" in receipt["search"]["skipped"] and receipt["verdict"].startswith("near-lossless (0 ")
    assert {row["option"] for row in receipt["sites"]} == {"keep"} and receipt["predicted_harm"] == 0 and not receipt["events"]
    assert not {"gradients", "measure", "spans", "scale"} & receipt["stages"].keys()
    assert all(torch.equal(value, state[name]) for name, value in load_file(result.out / "model.safetensors").items())


def test_one_scheme_for_all_is_measured_though_the_model_would_fit(llama, tmp_path):
    result = modicum.fit(llama[0], size="100MB", uniform=True, data=llama[1], out=tmp_path / "out", **FAST)
    assert "uniform" in result.receipt["search"] and "measure" in result.receipt["stages"]


def test_predicted_harm_is_that_of_the_plan_in_the_table(fitted, picks_of):
    result, table, _ = fitted("llama", "modicum", 6.0)
    assert result.receipt["predicted_harm"] == pytest.approx(table.harm(picks_of(result.plan, table)), rel=1e-9)


def test_a_size_is_met_to_the_byte_it_names(llama, fitted, tmp_path):
    first, _, _ = fitted("llama", "modicum", 6.0)
    exact = first.receipt["bytes"]["actual"]
    again, _, allowed = measured_fit("llama", tmp_path / "out", size=f"{exact}B", target="modicum", menu=MENU, group=32)
    assert allowed == exact >= again.receipt["bytes"]["actual"]
    assert again.receipt["predicted_harm"] <= first.receipt["predicted_harm"] * (1 + 1e-9)


def test_bits_per_weight_are_taken_as_given(tmp_path):
    bpw = 8 - 1e-9
    _, _, allowed = measured_fit("llama", tmp_path / "out", bpw=bpw, menu="nearest bits=2,nearest bits=4", harm="error")
    assert allowed == int(bpw * 143808 / 8) < 143808


def test_tied_weights_count_once(tmp_path):
    model, _ = zoo.tied_twin()
    numbers = sum(parameter.numel() for parameter in {id(p): p for p in model.parameters()}.values())
    result, _, allowed = measured_fit("tied_twin", tmp_path / "out", bpw=9.0, menu=CHEAP, harm="error")
    assert result.source.parameters == numbers < sum(p.numel() for _, p in model.named_parameters(remove_duplicate=False))
    assert allowed == 9 * numbers // 8
    assert result.receipt["bytes"]["bits_per_weight"] == pytest.approx(8 * weight_bytes(result.out) / numbers, rel=1e-12)
    with TensorFile(result.out / "model.safetensors") as file:
        assert len([name for name in file.entries if "embed_tokens" in name or "lm_head" in name]) == 1


# Plans, methods and layers kept


def test_an_edited_plan_is_obeyed(fitted, llama, tmp_path):
    before, _, _ = fitted("llama", "transformers", 11.0)
    body = json.loads((before.out / "plan.json").read_text())
    site = "model.layers.1.self_attn.o_proj.weight"
    body["options"][site] = "nearest bits=8 group=32 symmetric=true"
    (tmp_path / "plan.json").write_text(json.dumps(body))
    after = modicum.fit(llama[0], plan=tmp_path / "plan.json", data=llama[1], out=tmp_path / "out")
    assert Plan.read(after.out / "plan.json").options == body["options"]
    rows = {row["site"]: row["option"] for row in after.receipt["sites"]}
    assert rows == {row["site"]: row["option"] for row in before.receipt["sites"]} | {site: body["options"][site]}
    first, second = (load_file(result.out / "model.safetensors") for result in (before, after))
    packed, scale = (f"{site.removesuffix('.weight')}.weight_{part}" for part in ("packed", "scale"))
    assert second[packed].shape == (64, 16) and second[scale].shape == (64, 2)
    earlier = [name for name in first if name.startswith("model.layers.0.")]
    assert earlier and all(torch.equal(first[name], second[name]) for name in earlier)


def test_the_plan_that_was_written_gives_the_same_bytes(fitted, llama, tmp_path):
    before, _, _ = fitted("llama", "modicum", 6.0)
    after = modicum.fit(llama[0], plan=before.out / "plan.json", data=llama[1], out=tmp_path / "out")
    assert (after.out / "model.safetensors").read_bytes() == (before.out / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "patterns, kept",
    [
        (("lm_head",), {"lm_head.weight"}),
        (("model.layers.0.*",), {f"model.layers.0.{name}.weight" for name in ("self_attn.o_proj", "self_attn.q_proj", "mlp.up_proj")}),
        (("down_proj", "q_proj"), {f"model.layers.{i}.{name}.weight" for i in range(3) for name in ("mlp.down_proj", "self_attn.k_proj")}),
    ],
)
@pytest.mark.parametrize("how", [{"bpw": 20.0, "search_time": 0}, {"method": "nearest bits=4"}])
def test_layers_kept_are_kept(llama, tmp_path, how, patterns, kept):
    result = modicum.fit(
        llama[0], data=llama[1], out=tmp_path / "out", keep=patterns, harm="error", menu=CHEAP if "bpw" in how else None, **how
    )
    stored, state = load_file(result.out / "model.safetensors"), llama[0].state_dict()
    assert all(torch.equal(stored[name], state[name]) for name in kept)
    if "method" in how:
        assert "model.layers.1.self_attn.o_proj.weight_packed" in stored
    reasons = {row["unit"]: row["reason"] for row in result.receipt["coverage"]["untreated"]}
    assert {reasons[name] for name in kept} == {"kept by request"}


@pytest.mark.parametrize(
    "target, method",
    [
        ("transformers", "nearest bits=8 group=32"),
        ("transformers", "float8"),
        ("modicum", "hqq bits=3"),
        ("modicum", "wanda keep=0.5"),
        ("modicum", "svd rank=8"),
        ("modicum", "gptq bits=3 | eora rank=4"),
    ],
)
def test_a_method_is_applied_everywhere(llama, tmp_path, target, method):
    result = modicum.fit(llama[0], method=method, target=target, data=llama[1], out=tmp_path / "out")
    told = result.receipt["bytes"]
    assert weight_bytes(result.out) == told["actual"] == told["predicted"] < told["original"] and told["allowed"] is None
    words = method.split(" | ")[0].split()
    options = [row["option"] for row in result.receipt["sites"] if not row["data_free"]]
    assert options and all(all(word in option.split() for word in words) for option in options)


def test_a_dry_run_writes_nothing(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for out in (None, tmp_path / "deep" / "out"):
        forecast = modicum.fit(llama[0], "8bpw", data=llama[1], out=out, dry_run=True).receipt
        assert forecast["format"] == "modicum-forecast" and forecast["fits"] is True
    assert list(tmp_path.iterdir()) == []


def test_the_forecast_holds(fitted, llama):
    forecast = modicum.fit(llama[0], "8bpw", data=llama[1], dry_run=True, menu=MENU, group=32).receipt
    _, table, _ = fitted("llama", "transformers", 11.0)
    assert forecast["smallest_bytes"] == table.cost(table.cheapest())
    assert {site["name"] for site in forecast["sites"]} == set(table.choices) - set(table.children)


# Another seed (that one seed gives the same bytes, tests/crash/test_determinism.py holds)


def test_another_seed_draws_other_data(llama, tmp_path):
    one, other = (modicum.fit(llama[0], "12bpw", data=llama[1], out=tmp_path / str(seed), seed=seed, **FAST) for seed in (0, 1))
    assert one.receipt["data"]["hashes"] != other.receipt["data"]["hashes"]
