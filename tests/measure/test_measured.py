"""One measurement serves any budget, target and part of the menu, and refuses to serve another model, other data, or damage."""

import copy
import functools
import json
import multiprocessing
import os
import signal
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import modicum
from modicum.core.errors import ModelError, ModicumError, SettingError
from modicum.core.progress import Quiet
from modicum.core.unit import Axis, Site, Unit
from modicum.data.splits import count_tokens
from modicum.fit.choosing import Choosing
from modicum.fit.making import Making
from modicum.measure import Measured, coupled, measure
from modicum.measure import survey as survey_module
from modicum.measure.measurement import Measurement
from modicum.measure.settings import Settings
from modicum.measure.subject import Subject
from modicum.models.open import open_model
from modicum.sweep import Sweep
from modicum.sweep.beside import shares_state
from modicum.testing import zoo
from modicum.work.store import ChainStore
from modicum.work.workdir import WorkDir

MENU = "nearest bits=2 group=32,gptq bits=3 group=32 sweeps=0,nearest bits=8 group=32,ziplm keep=0.5,blocks,replaceme"
FILES = {"measurement.json", "findings.json", "sequences.safetensors", "felt.safetensors"}


@pytest.fixture(scope="module")
def llama():
    return zoo.build("llama")


@pytest.fixture(scope="module")
def known(llama, tmp_path_factory):
    model, batches = llama
    return measure(model, out=tmp_path_factory.mktemp("measured") / "m", data=batches, menu=MENU)


class Watch(Quiet):
    """Remembers the stage that runs."""

    now = ""

    def start(self, stage, total):
        self.now = stage


@pytest.fixture
def unmeasured(monkeypatch):
    """Progress under which nothing may be measured: what was swept for, by the stage it happened in."""
    watch, begin = Watch(), Sweep.__init__

    def refuse(*_, **__):
        raise AssertionError("measured again")

    def counted(self, *arguments, **settings):
        watch.sweeps.append((watch.now, frozenset(settings.get("needs", ()))))
        begin(self, *arguments, **settings)

    watch.sweeps = []
    monkeypatch.setattr(Measurement, "run", refuse)
    monkeypatch.setattr(survey_module, "output_gradients", refuse)
    monkeypatch.setattr(survey_module, "measure_spans", refuse)
    monkeypatch.setattr(Sweep, "__init__", counted)
    return watch


def size_of(out):
    return sum(path.stat().st_size for path in out.glob("*.safetensors"))


# Any budget


@pytest.mark.parametrize(
    "target, budget, menu",
    [
        ("modicum", {"bpw": 2.8}, None),
        pytest.param("modicum", {"bpw": 4}, None, marks=pytest.mark.slow),
        ("modicum", {"size": "100kB", "params": "80%"}, None),
        ("modicum", {"bpw": 5}, "nearest bits=2 group=32,ziplm keep=0.5"),
        ("transformers", {"bpw": 6}, None),
        pytest.param("transformers", {"bpw": 14}, "nearest bits=8 group=32", marks=pytest.mark.slow),
    ],
)
def test_any_budget_target_and_part_of_the_menu_without_another_sweep(llama, known, unmeasured, target, budget, menu):
    result = modicum.fit(llama[0], measured=known, target=target, menu=menu, search_time=0, progress=unmeasured, **budget)
    told = result.receipt["bytes"]
    assert size_of(result.out) == told["actual"] == told["predicted"] <= told["allowed"]
    assert {"gradients", "measure", "spans", "scale"}.isdisjoint(result.receipt["stages"])
    assert not [needs for stage, needs in unmeasured.sweeps if needs and stage not in ("survey", "cut", "assemble")]
    if menu is not None:
        assert {row["option"].split(" symmetric")[0] for row in result.receipt["sites"]} <= {*menu.split(","), "keep", "dropped"}
    if "params" in budget:
        assert result.receipt["values"]["actual"] <= 0.8 * result.source.parameters


def test_low_budgets_take_structure_and_high_ones_leave_it(llama, known):
    plans = {
        bpw: modicum.fit(llama[0], bpw=bpw, measured=known, target="modicum", search_time=0).plan for bpw in (2.1, 2.8, 33.0)
    }  # fmt: skip
    structure = {bpw: [site for site in plan.options if site == "model" or ":" in site] for bpw, plan in plans.items()}
    assert "model" in structure[2.1] and len(structure[2.1]) >= len(structure[2.8]) and not structure[33.0]


@pytest.mark.parametrize("target, bpw", [("modicum", 4.0), pytest.param("transformers", 7.0, marks=pytest.mark.slow)])
def test_the_files_are_those_of_a_fit_that_measures_itself(llama, known, tmp_path, target, bpw):
    """With the same harms: a fit that judges nothing has no scales learnt from judged plans."""
    model, batches = llama
    unscaled = copy.deepcopy(known)
    unscaled.findings.scales = {}
    again = modicum.fit(model, bpw=bpw, measured=unscaled, target=target, search_time=0, out=tmp_path / "again")
    direct = modicum.fit(model, bpw=bpw, data=batches, menu=MENU, target=target, search_time=0, out=tmp_path / "direct")
    for name in ("model.safetensors", "plan.json", "config.json"):
        assert (again.out / name).read_bytes() == (direct.out / name).read_bytes()
    for name in ("predicted_harm", "quality", "bytes", "sites", "data"):
        assert again.receipt[name] == direct.receipt[name]


def test_the_plan_chosen_gives_the_same_files_on_its_own(llama, known, tmp_path):
    model, batches = llama
    chosen = modicum.fit(model, bpw=2.8, measured=known, target="modicum", search_time=0, out=tmp_path / "chosen")
    alone = modicum.fit(model, plan=chosen.out / "plan.json", data=batches, out=tmp_path / "alone")
    assert chosen.plan.cuts or "model" in chosen.plan.options
    assert (alone.out / "model.safetensors").read_bytes() == (chosen.out / "model.safetensors").read_bytes()


def test_cuts_are_found_once(llama, known, monkeypatch):
    """A fit takes those that were found while measuring, which are those it would find."""
    opened = known.open(llama[0], Settings(menu=None))
    assert opened.cuts == Subject.open(llama[0], Settings(), None, known.splits).cuts
    monkeypatch.setattr("modicum.measure.subject.coupled_cuts", lambda *_: pytest.fail("looked for cuts again"))
    chosen = modicum.fit(llama[0], bpw=2.8, measured=known, target="modicum", search_time=0)
    assert chosen.plan.cuts


def test_what_a_table_gives_is_felt_alike_from_a_measurement(llama, tmp_path):
    model, batches = llama
    rules = ["*_proj: nearest bits=8 group=32", "lm_head: nearest bits=8 group=32", "embed_tokens: coded rate=3"]
    settings = {"menu": ["nearest bits=8 group=32"], "set": rules, "search_time": 0}  # what rules alone give is asked for too
    known = measure(model, out=tmp_path / "known", data=batches, **settings)
    (table,) = known.felt(open_model(model)).values()
    assert table.shape == 2 * (model.config.hidden_size,)
    again = modicum.fit(model, bpw=9.3, measured=known, target="modicum", out=tmp_path / "again")
    direct = modicum.fit(model, bpw=9.3, data=batches, target="modicum", out=tmp_path / "direct", **settings)
    assert again.plan.options["model.embed_tokens.weight"] == "coded rate=3.0"
    assert (again.out / "model.safetensors").read_bytes() == (direct.out / "model.safetensors").read_bytes()
    del known.meta["felt"]  # as older versions wrote it
    assert known.felt(open_model(model)) == {}


def test_groups_of_any_shape_come_back():
    groups = ((0, 1), (2, 3)), ((3, 1), (0, 2)), ((0, 1), (2, 3)), ((0,), (1,))
    unit = Unit("w", "w", "m", "linear", (4, 4), (4, 4), torch.float32)
    sites = [Site(str(place), "cut", (unit,), (Axis("w", "rows", each),)) for place, each in enumerate(groups)]
    assert list(coupled.read(json.loads(json.dumps(coupled.told(sites))), {"w": unit}).values()) == sites


# On disk


def test_a_measurement_holds_harms_and_sequences_and_no_weights(llama, known):
    model, batches = llama
    sizes = {path.name: path.stat().st_size for path in known.directory.iterdir()}
    assert sizes.keys() == FILES | {".modicum-files.json", "run.yaml"}
    tokens = sum(batch["input_ids"].numel() for part in ("calibration", "validation", "test") for batch in getattr(known.splits, part))
    assert sizes["sequences.safetensors"] <= 8 * tokens + 1500
    # A line for each option of each unit, whatever the size of the weights.
    assert sizes["findings.json"] + sizes["measurement.json"] < 400 * sum(len(found) for found in known.findings.units.values())
    assert not list(known.directory.parent.glob("*.partial*"))


def test_sequences_come_back_as_they_were(llama, known):
    model, batches = llama
    subject = Subject.open(model, Settings(), batches)
    for part in ("calibration", "validation", "test"):
        kept, given = (getattr(splits, part) for splits in (Measured.read(known.directory).splits, subject.data))
        assert len(kept) == len(given) and all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(kept, given))
    assert known.splits.hashes == subject.data.hashes


def test_batches_of_tuples_come_back_as_tuples(tmp_path):
    model, batches = zoo.build("mlp")
    found = measure(
        model, out=tmp_path / "m", data=[(batch["x"],) for batch in batches], menu="nearest bits=4 group=32", harm="error", search_time=0
    )
    assert isinstance(found.splits.test[0], tuple)
    result = modicum.fit(bpw=7, measured=found, search_time=0)  # the model is the one in memory
    assert result.receipt["bytes"]["actual"] <= result.receipt["bytes"]["allowed"]


def test_a_measured_directory_needs_no_model_to_be_named(tmp_path):
    model, batches = zoo.build("llama")
    model.save_pretrained(tmp_path / "model")
    measure(tmp_path / "model", out=tmp_path / "m", data=batches, menu="nearest bits=8 group=32", harm="error", search_time=0)
    assert modicum.fit(bpw=14, measured=str(tmp_path / "m"), search_time=0).receipt["model"]["name"] == str(tmp_path / "model")


# Interrupted

children = multiprocessing.get_context("forkserver")
children.set_forkserver_preload(["modicum.fit.run", "modicum.testing.zoo", "transformers.models.llama.modeling_llama"])
MOMENTS = {
    "within the sweep": (ChainStore, "keep", 2),
    "as a span is noted": (survey_module, "write_json", 1),
    "before the scales": (survey_module, "learn", 1),
    "as it moves into place": (WorkDir, "finish", 1),
}


def measuring(out, moment=None, **words):
    """Measure, or die at a moment as by ``kill -9``."""
    torch.set_num_threads(1)
    if moment is not None:
        owner, name, count = MOMENTS[moment]
        function, left = getattr(owner, name), iter(range(count, -1, -1))

        def deadly(*arguments, **keywords):
            if next(left) <= 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        setattr(owner, name, deadly)
    model, batches = zoo.build("llama")
    measure(model, out=out, data=batches, menu=MENU, target="modicum", **words)


def in_child(*arguments, **words):
    process = children.Process(target=measuring, args=arguments, kwargs=words)
    process.start()
    process.join(120)
    return process.exitcode


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What a run with some words wrote that nobody disturbed, each made once."""

    @functools.cache
    def made(**words):
        out = tmp_path_factory.mktemp("whole") / "m"
        assert in_child(out, **words) == 0
        return out

    return made


# The first and the last in the short form.
@pytest.mark.parametrize(
    "moment", [pytest.param(name, marks=[] if place in (0, 3) else pytest.mark.slow) for place, name in enumerate(MOMENTS)]
)
def test_a_killed_measurement_continues_to_the_same_findings(uninterrupted, tmp_path, moment):
    words = {} if "scales" in moment else {"search_time": 0}  # without, no plans are judged to learn them from
    assert in_child(tmp_path / "m", moment, **words) == -signal.SIGKILL
    assert not (tmp_path / "m").exists() and (tmp_path / "m.partial").is_dir()
    assert in_child(tmp_path / "m", **words) == 0
    for name in ("findings.json", "sequences.safetensors"):
        assert (tmp_path / "m" / name).read_bytes() == (uninterrupted(**words) / name).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"m"}


# Refusals


def test_a_model_of_another_kind_is_refused_before_it_is_given_sequences_it_cannot_take(known):
    other, _ = zoo.build("t5")
    with pytest.raises(SettingError, match=r"must be the model that was measured, is not or has changed\. Measure again\."):
        modicum.fit(other, bpw=8, measured=known)


@pytest.mark.parametrize("seconds", [0, 1e-6])
def test_without_time_to_judge_plans_harms_stand_as_predicted_and_the_events_say_so(llama, tmp_path, seconds):
    model, batches = llama
    found = measure(model, out=tmp_path / "m", data=batches, menu=MENU, search_time=seconds).findings
    assert not found.scales and not found.rank
    (event,) = [event for event in found.events if event.startswith("scales: left out")]
    assert event.endswith("harms stand as predicted. Pass a longer --search-time.")


def test_another_model_is_refused(known):
    other, _ = zoo.build("llama", seed=1)
    with pytest.raises(SettingError, match=r"must be the model that was measured, is not or has changed\. Measure again\."):
        modicum.fit(other, bpw=5, measured=known)


def test_choosing_runs_one_forward_and_what_else_running_tells_comes_before_anything_is_made(llama, known, monkeypatch, tmp_path):
    """A choice needs the sequence of calls alone; the model that is then made is compared, and its forwards stand beside each other, first."""
    told = []
    tell = lambda name, found=None: lambda *_, **__: told.append(name) or found
    monkeypatch.setattr(Choosing, "run", lambda self, run=Choosing.run: (run(self), told.append("chosen"))[0])
    monkeypatch.setattr("modicum.measure.compared.compared", tell("compared", ""))
    monkeypatch.setattr("modicum.sweep.rehearsal.shares_state", lambda *given, known=shares_state: tell("beside", known(*given))())
    monkeypatch.setattr(Making, "run", lambda self, chosen, run=Making.run: (told.append("made"), run(self, chosen))[1])
    made = modicum.fit(llama[0], bpw=4, measured=known, target="modicum", search_time=0, out=tmp_path / "one")
    assert told == ["chosen", "compared", "beside", "made"] and known.meta["alone"] is True and made.receipt["verification"]
    known.open(llama[0], Settings(menu=None))
    assert told[4:] == ["beside", "compared"]  # whoever does more than choose has all of it at once
    monkeypatch.setattr("modicum.sweep.rehearsal.shares_state", lambda *_: True)
    with pytest.raises(ModelError, match=r"must run as when it was measured, its forwards share state now\. Measure again\."):
        modicum.fit(llama[0], bpw=4, measured=known, target="modicum", search_time=0, out=tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_a_changed_model_is_refused(known):
    model, _ = zoo.build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-3
    with pytest.raises(SettingError, match="is not or has changed"):
        modicum.fit(model, bpw=5, measured=known)


@pytest.mark.parametrize(
    "words, match",
    [
        ({"seed": 1}, r"seed: was 0 when .* was measured, cannot be 1 now\. Measure again\."),
        ({"tokens": 64}, "tokens: was 512"),
        ({"harm": "fisher"}, "harm: was covariance"),
        ({"group": 32}, "group: was left out"),
        ({"data": "other.txt"}, r"data: was left out when .* cannot be other\.txt now"),
        ({"menu": "nearest bits=5 group=32"}, r"menu: 'nearest bits=5 group=32' was not measured\. Measure again with it on the menu\."),
        ({"menu": "nearest bits=2 group=32,ziplm keep=0.25"}, "'ziplm keep=0.25' was not measured"),
    ],
)
def test_other_settings_are_refused(llama, known, words, match):
    with pytest.raises(SettingError, match=match):
        modicum.fit(llama[0], bpw=5, measured=known, **words)


def test_a_target_that_was_not_measured_is_refused_and_the_one_measured_is_the_default(tmp_path):
    model, batches = zoo.build("llama")
    found = measure(model, out=tmp_path / "m", data=batches, menu="nearest bits=8 group=32", target="modicum", harm="error", search_time=0)
    assert modicum.fit(measured=found, bpw=10, search_time=0).receipt["request"]["target"] == "modicum"
    with pytest.raises(SettingError, match=r"target transformers: was not measured, modicum was\. Measure again for it\."):
        modicum.fit(measured=found, bpw=10, target="transformers")


def test_an_option_that_was_measured_for_another_target_alone_is_refused(llama, known):
    """As with the default menus: three bits stand on that of our container, and not on that of Transformers."""
    other = copy.deepcopy(known)
    for options in other.findings.units.values():
        options.pop("gptq bits=3 group=32 symmetric=true sweeps=0", None)
    assert modicum.fit(llama[0], measured=other, bpw=5, target="modicum", search_time=0, dry_run=True).receipt["fits"]
    with pytest.raises(SettingError, match=r"menu: 'gptq bits=3 .*' was not measured for target transformers\. Measure again"):
        modicum.fit(llama[0], measured=other, bpw=10, target="transformers")


def test_options_that_an_earlier_version_did_not_know_are_left_out_with_an_event(llama, tmp_path):
    """Its default menu was shorter, and some weights had no options at all."""
    model, batches = llama
    known = measure(model, out=tmp_path / "m", data=batches, target="transformers", search_time=0, harm="error")
    for options in known.findings.units.values():
        options.pop("gptq bits=4 symmetric=true")
    first = next(iter(known.findings.units))
    known.findings.units[first] = {}
    result = modicum.fit(model, measured=known, bpw=11)
    (event,) = [event for event in result.receipt["events"] if event.startswith("menu: of the options")]
    assert "were not measured" in event and event.endswith("Measure again to choose from them.")
    (row,) = [
        row for row in result.receipt["sites"] if first.rpartition(".weight")[0].rpartition(".")[2] in row["site"] and ".0." in row["site"]
    ]
    assert row["option"] == "keep"
    assert "gptq bits=4 symmetric=true" not in {row["option"] for row in result.receipt["sites"]}


def test_a_module_in_memory_must_be_given_again(known):
    with pytest.raises(SettingError, match=r"was taken of a module in memory\. Give it again as the model\."):
        modicum.fit(bpw=5, measured=known.directory)


def test_a_measurement_is_not_overwritten_unasked(llama, known):
    with pytest.raises(SettingError, match=r"exists already\. Choose another --out"):
        measure(llama[0], out=known.directory, data=llama[1])


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_that_is_missing_is_told(known, tmp_path, name):
    directory = copied(known, tmp_path)
    (directory / name).unlink()
    with pytest.raises(SettingError, match=r"must be a folder that measure wrote .*Measure again\."):
        Measured.read(directory)


def test_a_run_is_no_measurement(tmp_path):
    (tmp_path / "measurement.json").write_text('{"format": "modicum-receipt", "version": 1}')
    with pytest.raises(SettingError, match="not of format modicum-measurement, version 1"):
        Measured.read(tmp_path)


def copied(known, parent):
    directory = Path(tempfile.mkdtemp(dir=parent))
    for name in FILES:
        (directory / name).write_bytes((known.directory / name).read_bytes())
    return directory


@pytest.mark.parametrize("name", sorted(FILES))
@settings(max_examples=25)
@given(data=st.data())
def test_damage_is_never_anything_but_a_sentence(known, tmp_path_factory, name, data):
    """Bytes overwritten, cut off or put in: refused, unless what is said stays the same."""
    directory = copied(known, tmp_path_factory.mktemp("damaged"))
    whole = (directory / name).read_bytes()
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = data.draw(st.integers(start, min(len(whole), start + 40)))
    damaged = whole[:start] + data.draw(st.binary(max_size=8)) + (whole[stop:] if data.draw(st.booleans()) else b"")
    (directory / name).write_bytes(damaged)
    try:
        found = Measured.read(directory)
    except ModicumError as error:
        assert str(error).endswith("Measure again.")
    else:
        assert found.meta == known.meta and found.findings == known.findings


@settings(max_examples=25)
@given(data=st.data())
def test_values_of_other_kinds_are_never_anything_but_a_sentence(known, tmp_path_factory, data):
    """JSON that is whole, with one value in the place of another."""
    directory = copied(known, tmp_path_factory.mktemp("exchanged"))
    path = directory / data.draw(st.sampled_from(["measurement.json", "findings.json"]))
    body = json.loads(path.read_text())
    place, inside = None, body
    while isinstance(inside, dict | list) and inside and (place is None or data.draw(st.booleans())):
        key = data.draw(st.sampled_from(sorted(inside)) if isinstance(inside, dict) else st.integers(0, len(inside) - 1))
        place, inside = (inside, key), inside[key]
    value = data.draw(st.sampled_from([None, True, -1, "x", [], {}, [1], {"a": 1}, 1e400]))
    place[0][place[1]] = value
    path.write_text(json.dumps(body))
    try:
        assert Measured.read(directory).meta == known.meta and value == inside
    except ModicumError as error:
        assert str(error).endswith("Measure again.")


def test_options_are_compared_on_as_many_tokens_as_the_widest_weight_asks_for():
    batches = [{"input_ids": torch.zeros(8, 64, dtype=torch.int64)} for _ in range(20)]

    def compared(name):
        return survey_module._compared_on(SimpleNamespace(model=open_model(zoo.build(name)[0]), data=SimpleNamespace(calibration=batches)))

    widest = max(unit.shape[1] for unit in open_model(zoo.build("llama")[0]).units.values() if unit.kind != "embedding")
    few = compared("llama")
    assert 32 * widest <= count_tokens(few) < 32 * widest + 512 and len(few) < len(batches)
    assert compared("qwen3_moe") == batches
