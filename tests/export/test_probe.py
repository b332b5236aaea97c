"""What a target's own loader would not bring back right is known, and said, before anything is measured."""

import errno
import functools
import json
from pathlib import Path

import pytest
import torch
from transformers import FalconConfig, FalconForCausalLM, LlamaForCausalLM

import modicum
from modicum.core.budget import Budget
from modicum.core.errors import ModelError
from modicum.core.files import cache_folder, keep_json
from modicum.core.method import Change
from modicum.data.splits import call
from modicum.export import probe as probing
from modicum.export import small as small_models
from modicum.export._family import Layout
from modicum.export.hf import Transformers
from modicum.export.narrow import Incision
from modicum.export.probe import Finding, Probe, Trial, gap, weights
from modicum.export.uniform import narrower
from modicum.fit.request import Request
from modicum.measure.settings import common
from modicum.measure.subject import Subject
from modicum.models.open import open_model
from modicum.sweep import rehearse
from modicum.sweep.outputs import output_tensor
from modicum.table.findings import DEPTH
from modicum.testing import tiny, zoo

EIGHT = {"method": "nearest bits=8 group=32", "target": "transformers"}


@pytest.fixture
def target(monkeypatch, tmp_path):
    """The target of a tiny decoder, with a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model, batches = zoo.build("llama")
    opened = open_model(model)
    found = Transformers(opened, rehearse(opened, batches[0]))
    found.batch = batches[0]
    return found


def refuse(monkeypatch, wrong):
    """Let the loader fail at files for which ``wrong(forms)`` holds; the list of what it was given grows."""
    loaded, verify = [], Transformers.verify

    def failing(self, directory, forms, batch=None):
        loaded.append(dict(forms))
        if wrong(forms):
            raise RuntimeError("no place for these")
        return verify(self, directory, forms, batch)

    monkeypatch.setattr(Transformers, "verify", failing)
    return loaded


def is_wrong(name, kind):
    return lambda forms: any(name in unit and form.kind == kind for unit, form in forms.items())


def test_one_kind_that_comes_back_wrong_is_found_and_no_other(target, monkeypatch):
    refuse(monkeypatch, is_wrong("down_proj", "integer"))
    found = weights(Trial(target, target.batch))
    assert found.off == {"integer model.layers.#.mlp.down_proj.weight": "no place for these"}


def test_what_comes_back_wrong_stays_and_the_receipt_says_so(target, monkeypatch):
    refuse(monkeypatch, lambda forms: is_wrong("down_proj", "integer")(forms) or is_wrong("down_proj", "float8")(forms))
    model, batches = zoo.build("llama")
    receipt = modicum.fit(model, data=batches, **EIGHT).receipt
    left = {row["unit"] for row in receipt["coverage"]["untreated"] if row["reason"] == "target: loads otherwise"}
    assert left == {f"model.layers.{index}.mlp.down_proj.weight" for index in range(3)}
    assert any("mlp.down_proj" in event and "no place for these" in event for event in receipt["events"])


def test_where_nothing_comes_back_the_run_is_refused_before_any_work(target, monkeypatch, tmp_path):
    refuse(monkeypatch, lambda forms: True)
    model, batches = zoo.build("llama")
    with pytest.raises(modicum.ModelError, match="must load as the same model"):
        modicum.fit(model, data=batches, out=tmp_path / "out", **EIGHT)
    assert not list(tmp_path.glob("out*"))


def test_outputs_that_differ_are_wrong_too(target, monkeypatch):
    verify = Transformers.verify

    def shifted(self, directory, forms, batch=None):
        module, found = verify(self, directory, forms, batch)
        if "lm_head.weight" in forms:
            with torch.no_grad():
                module.model.norm.weight.mul_(torch.linspace(0.1, 2, 64))
        return module, found

    monkeypatch.setattr(Transformers, "verify", shifted)
    found = weights(Trial(target, target.batch))
    assert set(found.off) == {"integer lm_head.weight", "float8 lm_head.weight"}
    assert "outputs differ by" in found.off["integer lm_head.weight"]


def test_the_finding_is_kept_and_made_again_from_spoilt_files(target, monkeypatch):
    loaded = refuse(monkeypatch, lambda forms: False)
    first = Probe(target, target.batch)
    tries = len(loaded)
    assert tries
    assert Probe(target, target.batch).finding == first.finding
    assert len(loaded) == tries
    for spoilt in ("no JSON", json.dumps({"format": "modicum-probe", "version": 1, "off": {"a": 1}})):
        first.path.write_text(spoilt)
        assert Probe(target, target.batch).finding == first.finding
    assert len(loaded) == 3 * tries


def test_a_cache_folder_that_cannot_be_written_costs_the_probe_again(target, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert Probe(target, target.batch).finding == Finding()
    keep_json(cache_folder() / "a" / "b.json", {})


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_says_nothing_of_the_loader(target, monkeypatch, wrapped):
    """And is forgotten once there is space."""
    full = OSError(errno.ENOSPC, "No space left on device")

    def failing(self, *rest):
        if wrapped:
            raise ModelError("there is no space left on the disk") from full
        raise full

    with monkeypatch.context() as patched:
        patched.setattr(Layout, "write", failing)
        with pytest.raises(
            ModelError, match="the system says: .*No space left on device.* Free some space, or name another folder in TMPDIR"
        ):
            Probe(target, target.batch)
    assert not cache_folder().exists()
    assert Probe(target, target.batch).finding == Finding()


def test_versions_and_config_belong_to_the_key(target, monkeypatch):
    before = probing._key(target, target.batch)
    monkeypatch.setattr(probing, "_version", lambda name: "another")
    other = probing._key(target, target.batch)
    target.model.config.hidden_act = "gelu"
    assert len({before, other, probing._key(target, target.batch)}) == 3


def test_a_large_model_is_tried_on_a_small_one_of_its_kind(target, monkeypatch):
    monkeypatch.setattr(small_models, "SMALL", 60_000)
    monkeypatch.setattr(small_models, "_WIDTH", 32)
    found, script, row = small_models.small(target.model, target.script, target.batch)
    assert found.parameters <= 60_000
    assert type(found.module) is type(target.model.module)
    assert weights(Trial(Transformers(found, script), row)) == Finding()


@pytest.mark.parametrize("one", [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([float("-inf"), 2.0, 3.0])])
def test_gap(one):
    assert gap(one, one.clone()) == 0
    assert gap(one, one + torch.tensor([0.0, 0.0, 1.0])) > 0.5
    assert gap(one, torch.full_like(one, float("nan"))) == float("inf")


def scale(monkeypatch):
    """Let Llama compute with numbers of its config that cuts and dropped blocks change."""
    plain = LlamaForCausalLM.forward

    @functools.wraps(plain)
    def scaled(self, *args, **settings):
        found = plain(self, *args, **settings)
        found.logits = found.logits * (self.config.intermediate_size / 64) * self.config.num_hidden_layers
        return found

    monkeypatch.setattr(LlamaForCausalLM, "forward", scaled)


def reshaping():
    """A subject whose menu has cuts and blocks to leave out, and the choices that its table offers."""
    model, batches = zoo.build("llama")
    request = Request(budget=Budget(size=10**9), **common(menu="ziplm keep=0.5,blocks count=1,nearest bits=4 group=8", group=8))
    subject = Subject.open(model, request, batches)
    return subject, subject.sizing("transformers").table().choices


def probes(subject):
    return [note for note in subject.model.notes if note.startswith("probe: ")]


def test_cuts_and_dropped_blocks_that_come_back_otherwise_leave_the_menu(target, monkeypatch):
    scale(monkeypatch)
    subject, choices = reshaping()
    assert "all blocks:heads" in choices and "all blocks:ffn" not in choices
    assert len(choices.get(DEPTH, [0])) == 1
    said = probes(subject)
    assert any("mlp.up_proj" in note and "take no cuts" in note and "outputs differ" in note for note in said)
    assert any("no block is left out" in note for note in said)
    assert "another model" in subject.target("transformers").holds(Change(dropped=("model.layers.1",)))
    monkeypatch.setattr(probing.reshaped, "cuts", lambda trial: pytest.fail("asked again"))
    assert probes(reshaping()[0]) == said


def test_cuts_and_dropped_blocks_that_come_back_right_stay(target):
    subject, choices = reshaping()
    assert {"all blocks:heads", "all blocks:ffn"} <= set(choices) and len(choices[DEPTH]) > 1
    assert not probes(subject)


def test_a_count_that_a_config_computes_is_no_cut():
    """Falcon's width of a head is a property of its config."""
    config = FalconConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, multi_query=False, new_decoder_architecture=False
    )
    model = open_model(FalconForCausalLM(config).eval())
    unit = model.units["transformer.h.0.self_attention.dense.weight"]
    half = Incision(unit, None, torch.arange(32) < 16)
    assert narrower(model.module, model.config, {unit.name: half}) is None


@pytest.mark.parametrize(
    "name",
    [
        "OlmoHybridForCausalLM",
        "llama4",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("HrmTextForCausalLM", "RoFormerForCausalLM")),
    ],
)
def test_merged_renamed_and_exchanged_weights_are_written_as_the_loader_takes_them(name, tmp_path):
    model, batches = zoo.build(name) if name.islower() else (tiny.build(name), None)
    batches = batches or tiny.batches(model, 4)
    model.save_pretrained(tmp_path / "model")
    receipt = modicum.fit(tmp_path / "model", data=batches, out=tmp_path / "out", **EIGHT).receipt
    assert receipt["verification"]["logits"]["largest"] < 1e-3
    assert receipt["coverage"]["share"] > 0.7
    loaded = type(model).from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        mine, theirs = (output_tensor(call(module, batches[0]))[0] for module in (model, loaded))
    assert gap(mine, theirs) < 0.2


def test_the_kept_results_name_no_wrong_architecture():
    kept = json.loads((Path(__file__).parents[2] / "docs" / "architectures.json").read_text())
    outcomes = [one["outcome"] for one in kept["transformers"].values()]
    assert outcomes.count("right") >= 140
    assert set(outcomes) <= {"right", "refused", "not built"}


class Mixer(torch.nn.Module):
    """A module with a stack of its own that calls a linear inside."""

    def __init__(self):
        super().__init__()
        self.stack = torch.nn.Parameter(torch.randn(2, 16, 32) / 4)
        self.inner = torch.nn.Linear(16, 16)

    def forward(self, x):
        return torch.einsum("eij,bti->btj", self.stack, self.inner(x))


def test_a_stack_whose_module_calls_a_layer_inside_is_swept():
    torch.manual_seed(0)
    batches = [torch.randn(2, 6, 16) for _ in range(4)]
    result = modicum.fit(Mixer(), method="nearest bits=8 group=16", data=[(batch,) for batch in batches])
    treated = {row["site"] for row in result.receipt["sites"] if row["option"] != "keep"}
    assert "inner.weight" in treated
