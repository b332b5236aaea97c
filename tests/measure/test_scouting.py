"""Where one grid on every layer is near-lossless within the budget, nothing but rounding is measured, and nothing searched for."""

import pytest

import modicum
from modicum.core.budget import Budget
from modicum.core.option import KEEP, Option
from modicum.fit.request import Request
from modicum.fit.scene import Scene
from modicum.judge.quality import RuinedError
from modicum.measure import scouting
from modicum.table.menu import cutters, offered, spanners
from modicum.testing import zoo


def opened(bpw, **settings):
    model, batches = zoo.build("llama")
    scene = Scene.open(model, Request(target="modicum", budget=Budget(bpw=bpw), **settings), batches)
    named = {text for site in scene.sites for text in offered(scene.target, site, scene.menu)}
    return named, [note for note in scene.model.notes if "nothing but rounding was measured" in note], scene


def test_a_wide_budget_is_measured_for_rounding_alone():
    named, told, scene = opened(10)
    assert told and not cutters(scene.menu) and not spanners(scene.menu)
    assert {"gptq bits=8", "float8"} <= named and all(Option.parse(text).steps[0].family() == "quantize" for text in named - {KEEP})


def test_a_budget_that_hurts_is_measured_for_everything(monkeypatch):
    named, told, scene = opened(4)
    assert not told and "sparsegpt keep=0.5" in named and cutters(scene.menu)
    monkeypatch.setattr(scouting, "nearly_none", lambda metric: 0.0)
    assert not opened(10)[1]


@pytest.mark.parametrize("settings", [{"ram": 4_000_000_000}, {"menu": (Option.parse("gptq bits=8"), Option.parse("svd keep=0.5"))}])
def test_under_a_limit_of_memory_or_on_a_menu_that_was_asked_for_nothing_is_left_out(settings):
    assert not opened(10, **settings)[1]


def test_outputs_that_are_ruined_need_more_than_rounding(monkeypatch):
    def ruined(*runs):
        raise RuinedError("outputs")

    monkeypatch.setattr(scouting, "compare", ruined)
    assert not opened(10)[1]


def test_the_search_is_left_out_where_it_has_nothing_to_find():
    model, batches = zoo.build("llama")
    receipt = modicum.fit(model, "10bpw", data=batches, target="modicum").receipt
    assert receipt["search"]["skipped"].startswith("not needed, what the forecast chooses loses") and receipt["search"]["rank"] is None
    assert receipt["search"]["plain"]["sequences"] and receipt["quality"]["mean"] < 0.01 and "scale" not in receipt["stages"]


@pytest.mark.parametrize("settings", [{"search_time": 2, "allocator": "evopress"}, {"search_time": 61}])
def test_a_search_that_was_asked_for_is_made(settings):
    model, batches = zoo.build("llama")
    receipt = modicum.fit(model, "10bpw", data=batches, target="modicum", **settings).receipt
    assert "skipped" not in receipt["search"] and "evaluations" in receipt["search"]
