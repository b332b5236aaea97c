"""Tables made of findings: true bytes for every option under every cut and every span, and choices that hang together."""

import json
from functools import cache

import pytest
import torch

from modicum.core.budget import Budget
from modicum.core.errors import SettingError
from modicum.core.method import Need
from modicum.core.option import KEEP, Option
from modicum.core.plan import Choice
from modicum.core.progress import Quiet
from modicum.core.tensorfile import TensorFile
from modicum.core.unit import Site, Stats, Unit
from modicum.export._family import header_share, tensor_bytes
from modicum.fit.choose import Chooser
from modicum.fit.request import Request
from modicum.forms import Cut, Dense
from modicum.judge.judge import Levels, PlanJudge
from modicum.measure.settings import common
from modicum.measure.subject import Subject
from modicum.measure.survey import Survey
from modicum.sweep import Sweep
from modicum.sweep.coupling import kept_rows
from modicum.sweep.spill import SpillPool
from modicum.table.findings import CUT_PRIOR, DEPTH, GONE, Finding, Findings, Structural, kind_of
from modicum.table.harm import fisher
from modicum.table.menu import offered
from modicum.table.sizing import DIGITS, Sizing, level_of
from modicum.table.zeros import remaining_shape, zeros
from modicum.testing import zoo
from modicum.work.meter import Meter

MENU = "nearest bits=3 group=32,nearest bits=8 group=32,ziplm keep=0.5,ziplm keep=0.75,blocks,replaceme"
# What the target holds in forms of its own: scales, zero points, masks, factors, and a repair on top.
RICH = "nearest bits=3 group=32,ziplm keep=0.5,replaceme,wanda keep=0.5,svd keep=0.25,gptq bits=2 group=32 | eora rank=4"


def opened(name, menu=MENU, **settings):
    """A subject; its budget is there because choosers ask for one."""
    model, batches = zoo.tied_twin() if name == "tied_twin" else zoo.build(name)
    return Subject.open(model, Request(budget=Budget(size=10**9), **common(menu=menu, group=32, **settings)), batches)


@cache
def subject(name, menu=MENU):
    return opened(name, menu)


def measured(subject, target, directory):
    pool = SpillPool(None, None)
    found = Survey(subject, [target], directory, pool, Meter(), Quiet()).run()
    return found, Levels(directory / "levels", subject.sizing(target), found, subject.data.calibration, pool, 0)


def selection(table, depth, level, place):
    """Picks with one depth, one level of all cuts, and every weight's ``place``-th option of those that stand."""
    picks = {}
    for site, found in table.choices.items():
        allowed = table.allowed(site, picks)
        wanted = {DEPTH: depth}.get(site, level) if site in table.children else None
        named = [index for index in allowed if level_of(found[index].option) == wanted]
        picks[site] = named[0] if named else allowed[place % len(allowed)]
    return picks


def selections(table, cuts):
    """Every option of every weight under every level of its cut and every depth."""
    depths = [choice.option for choice in table.choices.get(DEPTH, [Choice(KEEP, 0, 0, 0.0)])]
    levels = dict.fromkeys(
        [KEEP, *(level_of(choice.option) for name in cuts for choice in table.choices.get(name, []) if choice.option != GONE)]
    )
    for depth in depths:
        for level in levels:
            most = max(len(table.allowed(site, selection(table, depth, level, 0))) for site in table.choices if site not in table.children)
            for place in range(most):
                yield selection(table, depth, level, place)


# Bytes


@pytest.mark.parametrize(
    "name, target, menu",
    [("llama", "modicum", RICH), ("gpt2", "modicum", MENU), ("llama", "transformers", MENU), ("gpt2", "transformers", MENU)],
)
def test_the_table_knows_the_files(tmp_path, name, target, menu):
    """Files are written from forms that were made of data; the table has seen zeros alone."""
    run = subject(name, menu)
    found, levels = measured(run, target, tmp_path)
    chooser = Chooser(run, target, run.settings)
    table = chooser.table(found)
    judge = PlanJudge(table, levels, run.data.validation)
    candidates = list(selections(table, chooser.sizing.groups))
    judge.prepare(candidates)
    seen = set()
    for picks in candidates:
        seen |= {(site, index) for site, index in picks.items()}
        change = levels.change(judge._span(picks)) if judge._span(picks) else None
        forms = dict(change.forms) if change else {}
        forms |= {unit: levels[unit, text, base] for unit, text, base in judge.parts(picks) if text != KEEP or base}
        layout = judge.target.layout(forms, change.biases if change else {}, frozenset(change.dropped if change else ()))
        (path,) = layout.write(tmp_path)
        size = path.stat().st_size
        assert chooser.exact_bytes(table, picks, found) == size
        with TensorFile(path) as file:
            entries = len(file.entries)
        # Two offsets of each entry have fewer digits than assumed; the header is padded to eight bytes.
        assert size <= table.cost(picks) <= size + 2 * DIGITS * entries + 16
        assert table.cost(picks) <= 1.03 * size
        whole = run.model.parameters - (0 if change is None else _values(run, change.dropped))
        assert table.cost(picks, "values") == whole + sum(form.values for form in forms.values()) - sum(
            run.model.units[unit].size for unit in forms
        )
    assert len(seen) == sum(len(choices) for choices in table.choices.values())


def _values(run, blocks):
    return sum(run.model.weights.held(name).numel() for block in blocks for name in run.model.blocks[block].parameters)


@pytest.mark.parametrize("name", ["llama", "tied_twin", "qwen3_moe", "bert", "mlp"])
def test_what_is_within_reach_is_known_before_anything_is_measured(name):
    """The table without findings has the sizes of the smallest and the largest selection to the byte."""
    run = subject(name, "nearest bits=3 group=32,ziplm keep=0.5,blocks")
    table = run.sizing("modicum").table()
    smallest, largest = table.cheapest(), table.best(lambda _, choice: (-float(choice.bytes),))
    assert table.consistent(smallest) and table.consistent(largest)
    assert table.cost(smallest) < 0.4 * run.model.dense_bytes < run.model.dense_bytes <= table.cost(largest)
    assert table.cost(largest, "values") == run.model.parameters
    assert all(choice.harm == 0 for choices in table.choices.values() for choice in choices)


# What hangs together


# Of each kind one in the short form: cuts of heads and channels, experts, an encoder beside a decoder, nothing to cut.
@pytest.mark.parametrize(
    "name",
    [
        *("llama", "gpt2", "qwen3_moe", "t5", "cnn", "mlp"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("tied_twin", "phi3", "bert", "vit", "mamba", "jamba")),
    ],
)
def test_every_choice_of_a_parent_leaves_a_child_something(name):
    run = subject(name)
    for target in run.possible_targets():
        sizing = run.sizing(target)
        table = sizing.table()
        assert [site for site in table.choices if site != DEPTH and site not in sizing.groups] == [
            site.name for site in run.target(target).sites()
        ]
        places = {site: place for place, site in enumerate(table.choices)}
        for child, parent in table.parents.items():
            assert places[parent] < places[child]
            for choice in table.choices[parent]:
                assert table.under(child, choice.option)
            known = {choice.option for choice in table.choices[parent]}
            assert all(choice.given and set(choice.given) <= known for choice in table.choices[child])
            texts = [(choice.option, given) for choice in table.choices[child] for given in choice.given]
            assert len(texts) == len(set(texts))
        assert all(not choice.given for site in table.choices.keys() - table.parents.keys() for choice in table.choices[site])


def test_what_is_gone_costs_nothing():
    table = subject("llama").sizing("modicum").table()
    gone = [choice for choices in table.choices.values() for choice in choices if choice.option == GONE]
    # A span of one block: seven weights and two cuts.
    assert len(gone) == 9
    assert all(choice.spends(resource) == 0 for choice in gone for resource in ("bytes", "values", "memory", "seconds", "harm"))


def test_what_lies_beside_the_weights_goes_with_a_block():
    run = subject("llama")
    table = run.sizing("modicum").table()
    keep, *spans = table.choices[DEPTH]
    assert (keep.bytes, keep.values, keep.memory) == (0, 0, 0)
    norms = {f"model.layers.2.{name}_layernorm.weight": (torch.float32, (64,)) for name in ("input", "post_attention")}
    saved = sum(tensor_bytes(*entry) + header_share(name, *entry, DIGITS) for name, entry in norms.items())
    assert {(span.bytes, span.values, span.memory) for span in spans} == {(-saved, -2 * 64, -2 * 64 * 4)}


def test_where_the_config_has_no_width_to_narrow_blocks_are_still_left_out():
    run = subject("deepseek_v3")
    table = run.sizing("transformers").table()
    assert set(table.parents.values()) == {DEPTH}
    assert run.cuts and not table.choices.keys() & {*run.cuts, *run.sizing("transformers").groups}


def test_blocks_that_must_be_cut_alike_have_one_choice():
    """It stands under every span; what the span leaves out is gone, the rest is cut."""
    run = subject("llama")
    sizing = run.sizing("transformers")
    found = Findings(spans={"blocks count=1 first=1": Structural([], ["model.layers.1"], 0.5)})
    _fill(found, sizing)
    for place, (name, site) in enumerate(run.cuts.items()):
        half = "ziplm keep=0.5 multiple=16" if name.endswith(":ffn") else "ziplm keep=0.5"
        found.cuts[name] = {half: Structural(list(range(len(site.axes[-1].groups) // 2)), [], 0.125 * (place + 1))}
    table = sizing.table(found)
    assert (
        set(sizing.groups)
        == {"all blocks:ffn", "all blocks:heads"}
        == table.choices.keys() - {DEPTH} - {s.name for s in sizing.target.sites()}
    )
    for kind in ("ffn", "heads"):
        harms = {choice.option: choice.harm / CUT_PRIOR for choice in table.choices[f"all blocks:{kind}"]}
        mine = {name: next(iter(levels.values())).harm for name, levels in found.cuts.items() if name.endswith(f":{kind}")}
        (whole, cut), (beside, both) = [list(harms)[:2], list(harms)[2:]]
        assert harms == {whole: 0, cut: sum(mine.values()), beside: 0, both: sum(h for name, h in mine.items() if "layers.1." not in name)}
    picks = selection(table, "blocks count=1 first=1", level_of(cut), 0)
    picks["all blocks:ffn"] = [choice.option for choice in table.choices["all blocks:ffn"]].index(
        list(choice.option for choice in table.choices["all blocks:ffn"] if level_of(choice.option) != KEEP and "beside" in choice.option)[
            0
        ]
    )
    picks = table.settle(picks)
    plan = sizing.plan(table, picks, found)
    assert plan.options[DEPTH] == "blocks count=1 first=1"
    assert {name: len(kept) for name, kept in plan.cuts.items()} == {
        name: len(site.axes[-1].groups) // 2 for name, site in run.cuts.items() if "layers.1." not in name
    }
    assert not any("layers.1." in name for name in plan.options)


def test_tied_weights_stand_under_every_depth():
    run = subject("tied_twin")
    table = run.sizing("modicum").table()
    (tied,) = [site.name for site in run.target("modicum").sites() if site.kind == "tied"]
    assert all(choice.given == tuple(depth.option for depth in table.choices[DEPTH]) for choice in table.choices[tied])


def test_a_span_that_the_target_cannot_hold_is_not_offered(tmp_path):
    """ReplaceMe changes the bias of GPT-2's projection, which only our container holds."""
    run = subject("gpt2", "nearest bits=8 group=32,blocks,replaceme")
    found, _ = measured(run, "modicum", tmp_path)
    assert {text.split()[0]: bool(span.biases) for text, span in found.spans.items()} == {"blocks": False, "replaceme": True}
    offered = {
        target: [choice.option.split()[0] for choice in run.sizing(target).table(found).choices[DEPTH]] for target in run.possible_targets()
    }
    assert offered == {"transformers": [KEEP, "blocks"], "modicum": [KEEP, "blocks", "replaceme"]}


def test_a_span_offered_is_one_that_was_measured(tmp_path):
    run = subject("llama")
    found = Findings(spans={"blocks count=1 first=1": Structural([], ["model.layers.1"], 0.5)})
    sizing = run.sizing("transformers")
    _fill(found, sizing)
    table = sizing.table(found)
    assert [(choice.option, choice.harm) for choice in table.choices[DEPTH]] == [(KEEP, 0.0), ("blocks count=1 first=1", 0.5)]
    fewer = opened("llama", "nearest bits=3 group=32,nearest bits=8 group=32,replaceme").sizing("transformers").table(found)
    assert DEPTH not in fewer.choices and not fewer.parents


def _fill(found, sizing):
    """The same harm for every option of every weight."""
    for site in sizing.target.sites():
        for unit in site.units:
            found.units[unit.name] = {text: Finding(0.25, 0.1, 2.0) for text in offered(sizing.target, site, sizing.menu)}


# Layers kept, experts


def test_layers_kept_stay():
    run = opened("llama", keep=("model.layers.1.self_attn.o_proj", "lm_head"))
    for target in ("modicum", "transformers"):
        table = run.sizing(target).table()
        for site in ("model.layers.1.self_attn.o_proj.weight", "lm_head.weight"):
            assert {choice.option for choice in table.choices[site]} == {KEEP}
        assert len(table.choices["model.layers.0.self_attn.o_proj.weight"]) >= 3
    table = run.sizing("modicum").table()
    assert "model.layers.1.self_attn:heads" not in table.choices and "model.layers.1.mlp:ffn" in table.choices
    assert DEPTH not in table.choices  # of two blocks that may go a third is none


def test_experts_of_a_block_that_goes_cost_nothing():
    """All experts are one site; a span takes some of them away."""
    run = subject("qwen3_moe", "nearest bits=4 group=32,blocks")
    target = run.target("transformers")
    sizing = run.sizing("transformers")
    table = sizing.table()
    (site,) = [site for site in target.sites() if site.kind == "experts"]
    whole, left = table.choices[site.name]
    assert whole.option == left.option and whole.given == (KEEP,) and left.given == ("blocks count=1",)
    dropped = ("model.layers.3",)
    remaining = [unit for unit in site.units if not run.script.home(unit.name, dropped)]
    assert len(remaining) == len(site.units) * 2 // 3
    option = Option.parse(whole.option)
    size = lambda units: sum(target.unit_bytes(unit, sizing.form(option, unit), DIGITS) for unit in units)
    assert whole.bytes == size(site.units) and left.bytes == size(remaining)
    assert (whole.values, left.values) == tuple(sum(unit.size for unit in units) for units in (site.units, remaining))


def test_a_site_that_nothing_fits_is_told():
    run = opened("qwen3_moe", "nearest bits=4 group=64")
    with pytest.raises(SettingError, match=r"experts: .* rows of 32, 64\. Pass a --group that divides them\."):
        run.sizing("transformers").table()


# Harm


def test_harm_is_that_of_the_units_under_the_cut():
    run = subject("llama")
    cut, level = "model.layers.0.mlp:ffn", "ziplm keep=0.5"
    found, sizing = Findings(), run.sizing("modicum")
    _fill(found, sizing)
    unit = "model.layers.0.mlp.up_proj.weight"
    for finding in found.units[unit].values():
        finding.under[level] = 0.125
    found.cuts = {cut: {level: Structural(list(range(64)), [], 0.5)}}
    found.facts = {unit: {"trace": 6.0, "eigenvalue": 3.0}}
    found.scales = {"nearest bits=3": 3.0}
    table = sizing.table(found)
    harms = {(choice.option, choice.given): choice.harm for choice in table.choices[unit]}
    three = "nearest bits=3 group=32"
    assert harms[three, (KEEP,)] == 0.75 and harms[three, (level,)] == 0.375
    assert harms["nearest bits=8 group=32", (level,)] == 0.125
    assert [choice.harm for choice in table.choices[cut]] == [0.0, 0.5 * CUT_PRIOR]
    assert table.facts[unit] == {"weights": 64 * 128, "trace": 6.0 / (64 * 128), "eigenvalue": 3.0}
    found.scales[kind_of(cut, level)] = 10.0
    assert sizing.table(found).choices[cut][1].harm == 5.0


def test_a_fused_site_has_the_harm_of_all_its_units():
    run = subject("llama")
    found, sizing = Findings(), run.sizing("transformers")
    _fill(found, sizing)
    table = sizing.table(found)
    (site,) = [site for site in run.target("transformers").sites() if len(site.units) == 3 and site.name.startswith("model.layers.0")]
    treated = [choice for choice in table.choices[site.name] if choice.option != KEEP]
    assert {choice.harm for choice in treated} == {0.75} and {choice.distance for choice in treated} == {6.0}


def test_what_was_not_seen_takes_the_median_energy():
    found = Findings(energy={"a": 1.0, "b": 5.0, "c": 100.0})
    found.units["d"] = {"x": Finding(None, 0.1, 1.0), "y": Finding(0.3, 0.1, 1.0, {"cut": 0.2})}
    assert found.harm("d", "x", "") == found.harm("d", "x", "cut") == pytest.approx(0.5)
    assert found.harm("d", "y", "") == 0.3 and found.harm("d", "y", "cut") == 0.2 and found.harm("d", "y", "other") == 0.3


def test_the_harm_left_by_a_cut_is_that_of_the_rows_left(tmp_path):
    """One sweep tells every level: the twin takes the error of the remaining rows alone."""
    run = opened("llama", "nearest bits=3 group=32,ziplm keep=0.5", harm="fisher")
    pool = SpillPool(None, None)
    survey = Survey(run, ["modicum"], tmp_path, pool, Meter(), Quiet())
    found, felt = survey.run(), survey._sensitivities()
    level, text = "ziplm keep=0.5", "nearest bits=3 group=32"
    stats = {}

    def copied(stage):
        for unit in stage.units:
            seen = stage.stats[unit.name]
            if seen.covariance is not None:
                stats[unit.name] = Stats(count=seen.count, covariance=seen.covariance.clone())

    Sweep(run.model, run.data.calibration, run.script, copied, needs={Need.COVARIANCE}, pool=pool).finish()
    compared = 0
    for name, site in run.cuts.items():
        for unit, axis in zip(site.units[:-1], site.axes[:-1]):
            weight = run.model.matrix(unit).float()
            change = Option.parse(text).apply(Site("", "unit", (unit,)), {unit.name: Stats(reference=weight)}, {unit.name: Dense(weight)})
            kept = kept_rows(axis, found.cuts[name][level].kept, unit.shape[0])
            error = (weight - change.forms[unit.name].dense().float()) * kept[:, None]
            twin = fisher(unit, error, stats[unit.name], felt[unit.name], weight)
            assert found.units[unit.name][text].under[level] == pytest.approx(twin, rel=1e-4)
            compared += 1
    assert compared == 3 * 5  # q, k, v, gate and up of three blocks


# Names


@pytest.mark.parametrize(
    "site, option, kind",
    [
        ("a.weight", "gptq bits=3 group=64 symmetric=true", "gptq bits=3"),
        ("a.weight", "gptq bits=3 group=64 | eora rank=8", "gptq bits=3 | eora"),
        ("a.weight", "svd keep=0.25", "svd"),
        ("model.layers.0.mlp:ffn", "ziplm keep=0.5", "ziplm on ffn"),
        ("model.layers.0.self_attn:heads", "ziplm keep=0.75", "ziplm on heads"),
        (DEPTH, "blocks count=2 first=1", "blocks"),
    ],
)
def test_kinds_tell_methods_bits_and_what_is_cut(site, option, kind):
    assert kind_of(site, option) == kind


def test_findings_come_back_from_json():
    found = Findings(
        {"u": {"x": Finding(None, 0.1, 0.2), "y": Finding(0.5, 0.1, 0.2, {"cut": 0.25})}}, {"u": 3.0},
        {"c": {"cut": Structural([0, 2], [], float("inf"))}}, {"s": Structural([], ["b"], 0.5)}, {"u": {"trace": 1.0}}, ["e"], {"k": 2.0},
        {"plans": 3},
    )  # fmt: skip
    assert Findings.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_shapes_that_a_cut_leaves():
    run = subject("llama")
    cut = run.cuts["model.layers.0.self_attn:heads"]
    shapes = {unit.module.rpartition(".")[2]: remaining_shape(cut, unit, [1]) for unit in cut.units}
    assert shapes == {"q_proj": (32, 64), "k_proj": (16, 64), "v_proj": (16, 64), "o_proj": (64, 32)}
    assert remaining_shape(cut, run.model.units["lm_head.weight"], [1]) == (256, 64)


def test_forms_of_zeros_are_made_once():
    run = subject("llama")
    sizing = Sizing(run.target("modicum"), run.settings.menu)
    unit, option = run.model.units["model.layers.0.mlp.up_proj.weight"], Option.parse("nearest bits=3 group=32")
    assert sizing.form(option, unit) is sizing.form(option, run.model.units["model.layers.1.mlp.up_proj.weight"])
    assert sizing.form(option, unit) is not sizing.form(option, unit, (64, 64))
    assert sizing.form(option, unit, (64, 64)).nbytes == sizing.form(option, unit).nbytes // 2 + 128 // 8  # and which rows remain


ROUNDINGS = [
    "gptq bits=3 group=16",
    "gptq bits=4 group=0 symmetric=true",
    "hqq bits=2 group=7",
    "float8",
    "half",
    "gptq bits=2 | eora rank=2",
]


@pytest.mark.parametrize("shape", [(37, 50), (37, 48), (20, 50), (9, 32)])
@pytest.mark.parametrize("text", ROUNDINGS)
def test_sizes_of_zeros_are_those_of_a_whole_matrix(text, shape):
    """Where one row stands for all of them too, and where a cut leaves fewer."""
    unit, option = Unit("w", "m", "w", "linear", (37, 50), (37, 50), torch.float32), Option.parse(text)
    form = zeros(option, unit, shape)
    site, stats = Site("w", "unit", (unit,)), Stats(reference=torch.zeros(37, 50), covariance=torch.eye(50), count=50)
    masks = [None if kept == size else torch.arange(size) < kept for kept, size in zip(shape, unit.shape)]
    start = Dense(torch.zeros(shape))
    whole = option.apply(site, {"w": stats}, {"w": start if shape == unit.shape else Cut(start, *masks)}).forms["w"]
    assert type(form) is type(whole) and form.shape == whole.shape and form.nbytes == whole.nbytes
    assert {name: (value.shape, value.dtype) for name, value in form.tensors().items()} == {
        name: (value.shape, value.dtype) for name, value in whole.tensors().items()
    }


def test_a_row_of_zeros_serves_all_weights_as_wide(monkeypatch):
    made, apply = [], Option.apply
    monkeypatch.setattr(Option, "apply", lambda self, *given: made.append(self) or apply(self, *given))
    units = [Unit(str(rows), "m", "w", "linear", (rows, 51), (rows, 51), torch.float32) for rows in (8, 24)]
    small, large = (zeros(Option.parse("gptq bits=5 group=16"), unit, unit.shape) for unit in units)
    assert len(made) == 1 and large.shape == (24, 51) and large.nbytes == 3 * small.nbytes


def test_the_largest_weights_are_sized_in_no_memory_at_all():
    unit = Unit("w", "m", "w", "linear", (1 << 20, 1 << 16), (1 << 20, 1 << 16), torch.bfloat16)
    assert zeros(Option.parse("gptq bits=4 group=0 symmetric=true"), unit, unit.shape).nbytes == (1 << 36) // 2 + (1 << 21)


def test_spans_that_would_change_what_is_kept_are_not_offered():
    menu = "nearest bits=3 group=32,nearest bits=8 group=32,blocks,replaceme"
    spans = {
        f"{name} count=1 first={first}": Structural([], [f"model.layers.{first}"], 0.5)
        for name in ("blocks", "replaceme")
        for first in (1, 2)
    }
    depths = {}
    for keep in ((), ("*.layers.1.self_attn.q_proj",)):
        sizing = opened("llama", menu, keep=list(keep)).sizing("modicum")
        found = Findings(spans=spans)
        _fill(found, sizing)
        depths[keep] = {choice.option for choice in sizing.table(found).choices[DEPTH]}
    assert depths == {(): {KEEP, *spans}, ("*.layers.1.self_attn.q_proj",): {KEEP, "blocks count=1 first=2"}}
