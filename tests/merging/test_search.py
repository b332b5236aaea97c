"""Weights chosen on validation data."""

import json

import pytest
import torch

import modicum
from modicum.core.errors import SettingError
from modicum.merging.search import curve, evolved, greedy
from modicum.models.located import DEMO

DEMO_MB = (DEMO / "model.safetensors").stat().st_size / 1e6


def test_each_way_finds_what_is_best():
    assert curve(lambda weights: -((weights[0] - 0.42) ** 2), 1).weights == (0.4,)
    helps = (0.0, 1.0, 0.5)  # what each adds where it is taken in
    mean = lambda weights: sum(w * h for w, h in zip(weights, helps)) / sum(weights)
    assert greedy(mean, 3).weights == (0.0, 1.0, 0.0)
    assert greedy(lambda weights: sum(w * h for w, h in zip(weights, helps)), 3).weights == (1.0, 1.0, 1.0)
    target = (0.3, 1.2)
    found = evolved(lambda weights: -sum((w - t) ** 2 for w, t in zip(weights, target)), (1.0, 1.0), trials=200)
    assert found.score > -1e-3 and len(found.tried) <= 200


def test_tensors_in_memory_are_judged_as_is_said():
    base, one, other = ({"w": torch.full((4,), value)} for value in (0.0, 1.0, 3.0))
    score = lambda made: -abs(float(made["w"].mean()) - 0.5)
    made = modicum.merge(base, [one], method="wise_ft", evaluate="curve", score=score)
    assert made.receipt["evaluated"]["weights"] == [0.5] and torch.equal(made.tensors["w"], torch.full((4,), 0.5))
    made = modicum.merge(base, [one, other], method="soup recipe=greedy", evaluate="greedy", score=score)
    assert made.receipt["weights"] == [1.0, 0.0] or made.receipt["weights"] == [0.0, 1.0]
    assert torch.equal(made.tensors["w"], one["w"])
    with pytest.raises(SettingError, match="score: must say how good"):
        modicum.merge(base, [one], method="wise_ft", evaluate="curve")
    with pytest.raises(SettingError, match="evaluate: must be curve"):
        modicum.merge(base, [one], method="wise_ft", evaluate="best", score=score)


def test_what_memory_cannot_hold_is_refused_before_anything_is_tried(tmp_path):
    with pytest.raises(SettingError, match=r"--ram: choosing weights holds a merge .* Give (\d+) MB or more, or say the weights") as told:
        modicum.merge("demo", ["demo"], tmp_path / "out", method="wise_ft", evaluate="curve", ram="1MB")
    assert int(str(told.value).split("Give ")[1].split()[0]) > 2 * DEMO_MB and not (tmp_path / "out").exists()


def test_a_checkpoint_is_judged_on_validation_text(tmp_path):
    made = modicum.merge("demo", ["demo"], tmp_path / "out", method="wise_ft", evaluate="curve", samples=2, tokens=16, verify=False)
    found = json.loads((made.out / "receipt.json").read_text())["evaluated"]
    assert len(found["tried"]) == 11 and len({round(row["score"], 6) for row in found["tried"]}) == 1
