"""Large tables of embeddings: what some of their rows tell of all, and forms that are made only where they are looked up."""

import pytest
import torch
from torch import nn

import modicum
from modicum.core.budget import Budget
from modicum.core.errors import SettingError
from modicum.core.option import KEEP, Option
from modicum.core.progress import Quiet
from modicum.fit.request import Request
from modicum.forms import Cut
from modicum.judge.judge import Levels, PlanJudge
from modicum.measure import felt, measure, rows
from modicum.measure.settings import common
from modicum.measure.subject import Subject
from modicum.measure.survey import Survey
from modicum.sweep.spill import SpillPool
from modicum.testing import zoo
from modicum.work.meter import Meter

MENU = "hqq bits=2 group=8,nearest bits=4 group=0,half,fp8,svd keep=0.5,hqq bits=2 group=8 | eora rank=2"
ENTRIES, WIDTH = 9000, 16


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(ENTRIES, WIDTH), nn.Linear(WIDTH, 4)
        with torch.no_grad():  # rows of all sizes, and those that are met larger than most
            self.table.weight.mul_(torch.rand(ENTRIES, 1) + 0.1)
            self.table.weight[:50] *= 3

    def forward(self, ids):
        return self.head(self.table(ids).tanh())


def subject(**settings):
    torch.manual_seed(1)
    batches = [(50 * torch.rand(8, 20) ** 3).long() + 25 * (seed % 2) for seed in range(6)]
    return Subject.open(Words().eval(), Request(budget=Budget(size=10**9), **common(menu=MENU, **settings)), batches)


def surveyed(opened, directory):
    directory.mkdir()
    return Survey(opened, ["modicum"], directory, SpillPool(None, None), Meter(), Quiet()).run()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    opened = subject(samples=32, harm="covariance")
    return opened, surveyed(opened, tmp_path_factory.mktemp("tables") / "measure")


@pytest.mark.parametrize("harm", ["fisher", "covariance"])
def test_some_rows_tell_what_all_cost(found, tmp_path, monkeypatch, harm):
    sampled = found[1] if harm == "covariance" else surveyed(subject(samples=32, harm=harm), tmp_path / "some")
    monkeypatch.setattr(rows, "_OTHERS", ENTRIES)
    whole = surveyed(subject(samples=32, harm=harm), tmp_path / "all").units["table.weight"]
    assert sampled.units["table.weight"].keys() == whole.keys() > {KEEP}
    for text, one in sampled.units["table.weight"].items():
        exact = "svd" in text or "eora" in text  # nothing that some rows tell
        for mine, true in ((one.harm, whole[text].harm), (one.relative, whole[text].relative), (one.distance, whole[text].distance)):
            assert mine == pytest.approx(true, rel=0 if exact else 0.05)
        assert exact or text == KEEP or one.distance != whole[text].distance  # it was sampled
    assert any(event.startswith("table.weight: ") and f"of its {ENTRIES} rows tell" in event for event in sampled.events)


def test_a_table_is_judged_by_the_rows_that_are_looked_up(found, tmp_path):
    opened, findings = found
    sizing, data, pool = opened.sizing("modicum"), opened.data, SpillPool(None, None)
    table = sizing.table(findings)
    whole = Levels(tmp_path / "whole", sizing, findings, data.calibration, pool, 0)
    some = Levels(tmp_path / "some", sizing, findings, data.calibration, pool, 0, data.validation)
    judges = [PlanJudge(table, levels, data.validation) for levels in (whole, some)]
    for place, choice in enumerate(table.choices["table.weight"]):
        picks = {site: 0 for site in table.choices} | {"table.weight": place}
        lost = [judge(picks, 4) for judge in judges]
        assert (lost[0] == lost[1]).all() and (choice.option == KEEP or lost[0].sum() > 0)
    part = ("table.weight", "hqq bits=2 group=8", "")
    assert isinstance(some[part], Cut) and some[part].inner.shape[0] <= 75 < whole[part].shape[0]
    with pytest.raises(AssertionError, match="made for others"):
        PlanJudge(table, some, data.test)


# Columns that make up for each other as the output feels what is looked up

TABLE, FELT = "model.embed_tokens.weight", "gptq bits=3 group=32 moment=felt"


@pytest.fixture(scope="module")
def llama():
    return zoo.build("llama")


def test_a_measured_table_is_chosen_as_it_is_felt_and_an_earlier_version_s_as_it_was(llama, tmp_path):
    model, batches = llama
    menu = "gptq bits=3 group=32,hqq bits=3 group=32"
    known = measure(model, out=tmp_path / "known", data=batches, menu=menu, target="modicum", search_time=0)
    solved, hqq = (known.findings.units[TABLE][text] for text in (FELT, "hqq bits=3 group=32"))
    assert known.findings.units[TABLE].keys() == {KEEP, FELT, "hqq bits=3 group=32"} and solved.harm < hqq.harm
    found = modicum.fit(model, bpw=5, measured=known, target="modicum", out=tmp_path / "found")
    assert found.plan.options[TABLE] == FELT
    alone = modicum.fit(model, plan=found.out / "plan.json", data=batches, out=tmp_path / "alone")
    assert (alone.out / "model.safetensors").read_bytes() == (found.out / "model.safetensors").read_bytes()
    del known.findings.units[TABLE][FELT]
    earlier = modicum.fit(model, bpw=5, measured=known, target="modicum", menu="gptq bits=3 group=32")
    assert earlier.plan.options[TABLE] == "hqq bits=3 group=32"


@pytest.mark.parametrize(
    ("target", "settings", "expected"),
    [("modicum", {}, FELT), ("modicum", {"harm": "error"}, "hqq bits=3 group=32"), ("transformers", {}, None)],
)
def test_gradients_are_taken_where_a_table_is_solved_and_nowhere_else(llama, target, settings, expected):
    method = Option.parse("gptq bits=3 group=32")
    opened = Subject.open(llama[0], Request(method=method, **common(menu=None, **settings)), llama[1])
    held = {site.name: opened.target(target).adapt(site, method) for site in opened.target(target).sites()}
    assert str(held.get(TABLE)) == str(expected) and felt.wanted(opened, held.values()) == (expected == FELT)


@pytest.mark.parametrize(
    ("method", "target"), [("gptq bits=3 moment=felt", "modicum"), ("gptq bits=3 moment=felt group=32", "transformers")]
)
def test_what_is_for_tables_is_refused_for_what_multiplies_inputs(llama, method, target):
    with pytest.raises(SettingError, match=r"model\.layers\.0\.mlp\.up_proj.*"):
        modicum.fit(
            llama[0], method="gptq bits=4 group=32", set={"model.layers.0.mlp.up_proj.weight": method}, data=llama[1], target=target
        )
    if target == "transformers":  # where embeddings stay dense
        with pytest.raises(SettingError, match="it is for tables, whose entries are looked up"):
            modicum.fit(llama[0], method=method, data=llama[1], target=target)


def test_a_table_that_was_asked_to_be_felt_tells_where_it_cannot(llama):
    made = modicum.fit(
        llama[0], method="half", set={TABLE: "gptq bits=3 group=32 moment=felt"}, harm="error", data=llama[1], target="modicum"
    )
    assert made.plan.options[TABLE] == "gptq bits=3 group=32 moment=felt"
    assert any("how the output feels it was not seen, hqq bits=3 group=32 stands in" in event for event in made.receipt["events"])
