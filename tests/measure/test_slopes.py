"""Gradients by weight are taken once for all that ask, kept to resume from, and bounded by what memory there is."""

from dataclasses import replace

import pytest
import torch

import modicum
from modicum.core.method import Need
from modicum.core.option import Option
from modicum.measure import slopes
from modicum.measure.settings import Settings
from modicum.measure.subject import Subject
from modicum.models.open import open_model
from modicum.sweep import rehearse
from modicum.sweep.slopes import weight_gradients
from modicum.sweep.spill import SpillPool
from modicum.testing import zoo
from modicum.work.meter import Meter

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def subject():
    module, batches = zoo.build("llama")
    return Subject.open(module, Settings(), batches)


def taken(subject, place, wanted=(Need.WINDOW,)):
    subject.script.slopes = {}
    return slopes.take(subject, {NAME: frozenset(wanted)}, subject.data.calibration, [place], SpillPool(None), Meter())


def test_they_are_kept_and_not_taken_again(subject, tmp_path, monkeypatch):
    assert taken(subject, tmp_path / "s.safetensors") == []
    before = subject.script.slopes[NAME]
    monkeypatch.setattr(slopes, "weight_gradients", lambda *_, **__: pytest.fail("taken again"))
    assert taken(subject, tmp_path / "s.safetensors") == []
    after = subject.script.slopes[NAME]
    assert after.count == before.count and torch.equal(after.total, before.total) and torch.equal(after.window, before.window)
    assert (
        slopes.take(subject, {NAME: frozenset({Need.SLOPES})}, subject.data.calibration, [tmp_path / "no"], SpillPool(None), Meter()) == []
    )


def test_a_window_has_as_many_as_there_is_room_for(subject, tmp_path):
    plan = subject.memory
    try:
        subject.memory = replace(plan, gradients=2 * 2 * subject.model.units[NAME].size)
        (event,) = taken(subject, tmp_path / "s.safetensors")
        assert "those of the last 2 of" in event and len(subject.script.slopes[NAME].window) == 2
    finally:
        subject.memory = plan


def test_who_asks_is_found_and_a_spilled_sum_is_the_same(subject, tmp_path):
    options = {"a": [Option.parse("wanda"), Option.parse("gblm | eora rank=2")], "b": [Option.parse("gptq bits=4"), Option()]}
    assert slopes.asked(options) == {"a": frozenset({Need.SLOPES})}
    whole = weight_gradients(subject.felt, subject.data.calibration, subject.script, {NAME}, window=2)[NAME]
    pool = SpillPool(0, tmp_path)
    spilled = weight_gradients(subject.felt, subject.data.calibration, subject.script, {NAME}, window=2, pool=pool)[NAME]
    assert torch.equal(whole.square, spilled.square) and torch.equal(whole.window, spilled.window)


def test_two_ranks_find_what_one_does(together):
    module, batches = zoo.build("llama")
    model = open_model(module)
    alone = weight_gradients(model, batches, rehearse(model, batches[0]), {NAME}, window=7)[NAME]

    twins = [open_model(zoo.build("llama")[0]) for _ in range(2)]  # before the threads: what is drawn at once is drawn otherwise

    def work(ranks):
        own = twins[ranks.rank]
        return weight_gradients(own, batches, rehearse(own, batches[0]), {NAME}, window=7, ranks=ranks)[NAME]

    for found in together(work):
        assert found.count == alone.count
        torch.testing.assert_close(found.square, alone.square, rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(found.window, alone.window, rtol=1e-2, atol=1e-6)


def test_a_menu_asks_and_what_a_measurement_chose_takes_them_anew(tmp_path):
    module, batches = zoo.build("llama")
    settings = {"menu": "gblm keep=0.5", "target": "modicum", "gradient_samples": 2, "search_time": 0.0}
    measured = modicum.measure(module, data=batches, out=tmp_path / "m", **settings)
    assert any("gblm keep=0.5" in options for options in measured.findings.units.values())
    assert not any("stands in for gblm" in event and ".mlp." in event for event in measured.findings.events)
    result = modicum.fit(measured=measured, params="70%", out=tmp_path / "out", allow_broken=True)
    assert any("gblm" in text for text in result.plan.options.values())
    assert "gradients by weight" in result.receipt["stages"]
