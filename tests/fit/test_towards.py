"""Codes of few bits aim half-way at what the original gave: whatever is spilled, and wherever a run is interrupted, to the same bytes."""

import pytest
import torch

import modicum
from modicum.fit.assemble import Assembly
from modicum.sweep import Sweep
from modicum.sweep.spill import SpillPool
from modicum.testing import zoo
from modicum.work.store import ChainStore

METHOD = "gptq bits=2 group=16 turns=4"


def fit(out, method=METHOD, **settings):
    model, batches = zoo.build("llama")
    return modicum.fit(model, method=method, data=batches, out=out, target="modicum", **settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of a run that nobody disturbed, and its receipt."""
    result = fit(tmp_path_factory.mktemp("whole") / "out")
    return (result.out / "model.safetensors").read_bytes(), result.receipt


def test_it_is_another_file_than_without_and_needs_no_word(whole, tmp_path):
    without = fit(tmp_path / "without", f"{METHOD} towards=0").out / "model.safetensors"
    assert without.read_bytes() != whole[0] and len(without.read_bytes()) == len(whole[0])
    assert not [event for event in whole[1]["events"] if "original" in event]


def test_more_bits_take_no_second_model(monkeypatch, tmp_path):
    made = []

    class Seen(Sweep):
        def __init__(self, *given, **settings):
            super().__init__(*given, **settings)
            made.append(self.originals.beside)

    monkeypatch.setattr("modicum.fit.assemble.Sweep", Seen)
    fit(tmp_path / "many", "gptq bits=4")
    fit(tmp_path / "few")
    assert made == [False, True]


def test_an_interrupted_run_continues_to_the_same_bytes(whole, monkeypatch, tmp_path):
    keep, left = ChainStore.keep, [True, False]  # the second of three blocks is the last to be kept

    def kept(self, *given):
        result = keep(self, *given)
        if not left.pop(0):
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ChainStore, "keep", kept)
        fit(tmp_path / "out")
    made, make = [], Assembly._make
    monkeypatch.setattr(Assembly, "_make", lambda self, unit, stats: made.append(unit.name) or make(self, unit, stats))
    assert (fit(tmp_path / "out").out / "model.safetensors").read_bytes() == whole[0]
    assert not [name for name in made if "layers.0" in name or "layers.1" in name]


def test_spilling_changes_nothing(whole, monkeypatch, tmp_path):
    admit, moved = SpillPool._admit, []

    def spilled(self, tensor):
        self.limit = 0
        admit(self, tensor)
        moved.append(self.spilled)

    monkeypatch.setattr("modicum.sweep.spill._SMALL", 1)
    monkeypatch.setattr(SpillPool, "_admit", spilled)
    assert (fit(tmp_path / "out").out / "model.safetensors").read_bytes() == whole[0] and moved[-1]


def test_weights_that_are_not_the_originals_any_more_say_so(tmp_path):
    model, batches = zoo.build("llama")
    with torch.no_grad():
        for name in ("q_proj", "k_proj"):
            weight = model.model.layers[1].self_attn.get_submodule(name)
            torch.nn.utils.prune.random_unstructured(weight, "weight", 0.5)
    told = modicum.fit(model, method=METHOD, data=batches, out=tmp_path / "out", target="modicum").receipt["events"]
    assert any("hold zeros that stay" in event for event in told)
