"""Judging plans that nobody assembled: the divergence is that of the files a fit would write."""

import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch

import modicum
from modicum.core.budget import Budget
from modicum.core.errors import ModelError
from modicum.core.option import KEEP
from modicum.core.progress import Quiet
from modicum.fit.request import Request
from modicum.forms import Dense
from modicum.judge.judge import Levels, PlanJudge
from modicum.judge.quality import RUINED, compare, plain, streamed
from modicum.measure.settings import common
from modicum.measure.subject import Subject
from modicum.measure.survey import Survey
from modicum.sweep import Sweep
from modicum.sweep.spill import SpillPool
from modicum.table.findings import DEPTH, GONE, Findings
from modicum.testing import zoo
from modicum.work.meter import Meter

MENU = "nearest bits=2 group=32,nearest bits=4 group=32,hqq bits=3 group=32,ziplm keep=0.5,ziplm keep=0.75,blocks,replaceme"
HALF, BLOCKS, FOLD = "ziplm keep=0.5", "blocks count=1 first=2", "replaceme count=1 first=2"


class World:
    """A measured model, its table, and a judge of its validation sequences."""

    def __init__(self, name, directory, target="modicum", menu=MENU):
        model, batches = zoo.build(name)
        self.subject = Subject.open(copy.deepcopy(model), Request(budget=Budget(size=10**9), **common(menu=menu)), batches)
        self.model, self.batches, self.pool, self.target = model, batches, SpillPool(None, None), target
        self.levels = Levels(directory / "kept", self.subject.sizing(target), Findings(), self.subject.data.calibration, self.pool, 0)
        (directory / "measure").mkdir()
        survey = Survey(self.subject, [target], directory / "measure", self.pool, Meter(), Quiet())
        self.found = self.levels.findings = survey._swept(survey._sensitivities(), self.levels.keep)
        self.found.spans = survey._spans(self.found)
        self.table = self.levels.sizing.table(self.found)
        self.judge = PlanJudge(self.table, self.levels, self.subject.data.validation, self.subject.model.is_causal)

    def picks(self, seed, depth=KEEP, cut=None):
        """A random selection of weights under one depth and one level of all cuts (None: any)."""
        chance, picks = np.random.default_rng(seed), {}
        for site, choices in self.table.choices.items():
            allowed = self.table.allowed(site, picks)
            wanted = depth if site == DEPTH else cut if site in self.table.children else None
            named = [index for index in allowed if choices[index].option == wanted]
            picks[site] = named[0] if named else int(chance.choice(allowed))
        return picks

    def fresh(self, directory):
        """Another judge, whose forms are all made when they are asked for."""
        data = self.subject.data
        levels = Levels(directory, self.subject.sizing(self.target), self.found, data.calibration, self.pool, 0)
        return PlanJudge(self.table, levels, data.validation, self.subject.model.is_causal)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return World("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return World("gpt2", tmp_path_factory.mktemp("gpt2"), menu="nearest bits=4 group=32,ziplm keep=0.5,replaceme")


@pytest.fixture(scope="module")
def fused(tmp_path_factory):
    return World("llama", tmp_path_factory.mktemp("fused"), "transformers", "nearest bits=4 group=32,nearest bits=8 group=32,replaceme")


def fitted(world, picks, out):
    """Quality on the judge's sequences of what ``fit`` makes of the selection's plan, loaded from its files."""
    plan = world.levels.sizing.plan(world.table, picks, world.found)
    result = modicum.fit(copy.deepcopy(world.model), plan=plan, data=world.batches, out=out)
    assert result.plan.options == plan.options
    batches = world.subject.data.validation
    module = modicum.load(out)
    return compare(plain(world.model, batches), plain(module, batches), batches, True)


@pytest.mark.parametrize(
    "name, depth, cut",
    [
        ("llama", KEEP, KEEP),
        ("llama", KEEP, HALF),
        ("llama", KEEP, None),
        ("llama", BLOCKS, KEEP),
        ("llama", FOLD, KEEP),
        ("llama", FOLD, HALF),
        ("gpt2", FOLD, HALF),
        ("fused", FOLD, KEEP),
    ],
)
def test_what_is_judged_is_what_fit_writes(request, tmp_path, name, depth, cut):
    """Options that need no data are the same form before and after assembly; cuts and folds are made on the original's inputs in both."""
    world = request.getfixturevalue(name)
    treated = lambda picks: all(part[1] != KEEP for part in world.judge.parts(picks) if FOLD in part[2])
    picks = next(picks for seed in range(3, 50) if treated(picks := world.picks(seed, depth, cut)))
    if depth == FOLD:
        # The unit that the stand-in is folded into is quantized, and where there are cuts it is cut too.
        folded = [part for part in world.judge.parts(picks) if FOLD in part[2]]
        assert folded
        assert all((HALF in part[2]) == (cut == HALF) for part in folded)
    quality, made = world.judge.quality(picks, world.judge.samples), fitted(world, picks, tmp_path / "out")
    assert quality.divergence == pytest.approx(made.divergence, rel=1e-3, abs=1e-7) and min(made.divergence) > 1e-4
    assert quality.candidate == pytest.approx(made.candidate, rel=1e-4) and quality.original == pytest.approx(made.original, rel=1e-5)


def test_keeping_everything_changes_nothing(llama):
    picks = {site: 0 for site in llama.table.choices}
    assert all(llama.table.choices[site][0].option == KEEP for site in picks)
    assert llama.judge(picks, llama.judge.samples).max() < 1e-6


def test_a_selection_that_ruins_the_model_is_judged_by_a_number(llama):
    """And the search goes on."""
    judge = PlanJudge(llama.table, llama.levels, llama.subject.data.validation, True)
    picks = llama.picks(0)
    judge(picks, 1)
    judge._dense = OrderedDict((part, Dense(value.dense() * float("nan"))) for part, value in judge._dense.items())
    judge._found.clear()
    found = judge(picks, 2)
    assert found.tolist() == [RUINED] * judge.samples
    with pytest.raises(ModelError, match="must be finite"):
        judge.quality(picks, 2)


def test_a_selection_is_judged_to_the_same_values_again(llama):
    picks, other = llama.picks(5), llama.picks(6, FOLD)
    first = llama.judge(picks, llama.judge.samples)
    llama.judge(other, llama.judge.samples)
    before = llama.judge.evaluations
    llama.judge._found.clear()
    assert np.array_equal(llama.judge(picks, llama.judge.samples), first)
    assert llama.judge.evaluations == before + 1
    assert np.array_equal(llama.judge(picks, 1), first[:1])
    both = llama.judge.many([other, picks], llama.judge.samples)
    assert np.array_equal(both[1], first) and not np.array_equal(both[0], first)


def test_no_sequence_is_judged_twice(llama, monkeypatch):
    """More of them are judged on from where a selection was left."""
    batches = [*llama.subject.data.validation, *llama.subject.data.test]
    judge, picks, ran = PlanJudge(llama.table, llama.levels, batches), llama.picks(9), []
    whole = PlanJudge(llama.table, llama.levels, batches)(picks, 3)
    quality = judge.quality
    monkeypatch.setattr(judge, "quality", lambda picks, samples, begun: ran.append((begun, samples)) or quality(picks, samples, begun))
    parts = [judge(picks, count) for count in (1, 2, 3, 2)]
    assert ran == [(0, 1), (1, 2), (2, 3)] and judge.evaluations == 1
    assert [part.tolist() for part in parts] == [parts[2][:count].tolist() for count in (1, 2, 3, 2)]
    assert parts[2] == pytest.approx(whole, rel=1e-3)


def test_what_is_kept_in_memory_changes_no_value(llama, monkeypatch, tmp_path):
    picks = llama.picks(7, KEEP, HALF)
    expected = llama.judge(picks, llama.judge.samples)
    monkeypatch.setattr("modicum.judge.judge._HELD_BYTES", 1)
    tight = PlanJudge(llama.table, llama.levels, llama.subject.data.validation)
    for _ in range(2):
        assert np.array_equal(tight(picks, tight.samples), expected)
    assert len(tight._dense) == 1 and not tight._originals


def test_parts_of_a_batch_are_judged_alike(llama):
    """Sequences are counted across batches of two."""
    batches = [*llama.subject.data.validation, *llama.subject.data.test]
    judge = PlanJudge(llama.table, llama.levels, batches)
    picks = llama.picks(8)
    whole = judge(picks, judge.samples)
    assert judge.samples == len(whole) > 2
    for samples in range(1, judge.samples):
        assert judge(picks, samples) == pytest.approx(whole[:samples], rel=1e-5)


# Forms made when they are asked for


@pytest.mark.parametrize("depth, cut", [(KEEP, KEEP), (KEEP, HALF), (FOLD, None)])
def test_forms_made_late_are_those_made_while_measuring(llama, tmp_path, depth, cut):
    picks = llama.picks(9, depth, cut)
    late = llama.fresh(tmp_path / "late")
    assert not any(part in late.levels for part in late.parts(picks))
    assert late(picks, late.samples) == pytest.approx(llama.judge(picks, late.samples), rel=1e-6)


def test_forms_with_data_made_late_are_those_made_while_measuring(tmp_path):
    world = World("llama", tmp_path, menu="gptq bits=2 group=32,gptq bits=3 group=32 | eora rank=4,svd keep=0.25")
    picks = world.picks(1)
    late = world.fresh(tmp_path / "late")
    assert np.array_equal(late(picks, late.samples), world.judge(picks, late.samples))


def test_many_selections_need_one_sweep(llama, tmp_path, monkeypatch):
    late, measuring, begin = llama.fresh(tmp_path / "late"), [], Sweep.__init__

    def counted(self, *arguments, **settings):
        if settings.get("measured"):
            measuring.append(settings["measured"])
        begin(self, *arguments, **settings)

    monkeypatch.setattr(Sweep, "__init__", counted)
    candidates = [llama.picks(seed) for seed in range(20, 26)]
    candidates = [{**picks, **{site: 0 for site in llama.table.children}} for picks in candidates]
    candidates = [llama.table.settle(picks) for picks in candidates]
    late.many(candidates, 1)
    assert len(measuring) == 1
    late.many(candidates, late.samples)
    assert len(measuring) == 1


def test_parts_name_what_was_done_before(llama):
    picks = llama.picks(2, FOLD, HALF)
    parts = {unit: (text, base) for unit, text, base in llama.judge.parts(picks)}
    assert not [unit for unit in parts if unit.startswith("model.layers.2.")]
    assert parts["model.layers.1.mlp.down_proj.weight"][1] == f"{HALF} > {FOLD}"
    assert parts["model.layers.1.mlp.up_proj.weight"][1] == parts["model.layers.0.self_attn.q_proj.weight"][1] == HALF
    assert parts["lm_head.weight"][1] == ""
    gone = [site for site, index in picks.items() if llama.table.choices[site][index].option == GONE]
    assert len(gone) == 9 and len(parts) == 7 * 2 + 2


def test_the_original_is_the_model_as_it_was(llama):
    """Judging leaves the model what it was."""
    llama.judge(llama.picks(4, FOLD, HALF), 1)
    batches = llama.subject.data.validation
    left = compare(plain(llama.model, batches), streamed(llama.subject.model, batches, llama.subject.script), batches, True)
    assert max(left.divergence) < 1e-9


def test_outputs_whose_shape_depends_on_values_are_told_with_what_to_do():
    runs = [iter([(0, torch.ones(rows, 4))]) for rows in (3, 2)]
    with pytest.raises(ModelError, match="for its shape cannot be compared. Name others with --output"):
        compare(*runs, [(torch.ones(3, 4),)], causal=False)
