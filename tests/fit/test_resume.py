"""A run that dies at any moment is continued by the same call, to the same bytes, and spoils nothing of anybody's."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch

import modicum
from modicum.core.errors import ModelError, SettingError
from modicum.core.progress import Quiet
from modicum.fit import structure, verify
from modicum.fit.assemble import Assembly
from modicum.fit.made import Made
from modicum.fit.run import Run
from modicum.measure import survey
from modicum.measure.measurement import Measurement
from modicum.quantize.gptq import Gptq
from modicum.testing import zoo
from modicum.work.store import ChainStore, FormStore

KILLED = 9
# A clean server that has imported everything once: each child is forked from it in milliseconds and can die without harm.
children = multiprocessing.get_context("forkserver")
children.set_forkserver_preload(
    ["modicum.fit.run", "modicum.testing.zoo", "modicum.receipt.report", "transformers.models.llama.modeling_llama"]
    + ["transformers.conversion_mapping", "transformers.generation.utils"]
)


def fit(out, *, budget="6bpw", seed=0, weights_seed=0, progress=None, **settings):
    model, batches = zoo.build("llama", seed=weights_seed)
    return modicum.fit(
        model,
        budget,
        data=batches,
        out=out,
        target="modicum",
        menu="nearest bits=2,gptq bits=4 sweeps=0,nearest bits=8",
        seed=seed,
        progress=progress,
        **{"search_time": 0.0, **settings},
    )


# What a child does


def in_child(*arguments, **settings):
    """Exit code of a process that runs ``work`` with these arguments."""
    process = children.Process(target=work, args=arguments, kwargs=settings)
    process.start()
    process.join(120)
    return process.exitcode


def work(out, log=None, point=None, count=0, **settings):
    torch.set_num_threads(1)
    if log is not None:
        Path(log).touch()
        record(log)
    if point is not None:
        KILLERS[point](count)
    fit(out, **settings)


def record(log):
    """Append a line for every unit measured and made, and for every solve; a line survives the death of the process."""
    for cls, name, word in ((Measurement, "_unit", "measure"), (Assembly, "_make", "make"), (Gptq, "quantize", "solve")):
        watch(cls, name, lambda *arguments, word=word: append(log, f"{word} {getattr(arguments[1], 'name', '')}"))


def append(log, line):
    with Path(log).open("a") as file:
        file.write(line + "\n")


def watch(owner, name, before):
    """Call ``before`` ahead of every call of a function."""
    function = getattr(owner, name)

    def watched(*arguments, **keywords):
        before(*arguments)
        return function(*arguments, **keywords)

    setattr(owner, name, watched)


def die_before(owner, name):
    """Die as the function is called for the n-th time."""

    def arm(count):
        left = iter(range(count, -1, -1))
        watch(owner, name, lambda *_: next(left) <= 1 and os._exit(KILLED))

    return arm


def die_after(owner, name):
    """Die as the function has returned for the n-th time."""

    def arm(count):
        function, left = getattr(owner, name), iter(range(count, -1, -1))

        def watched(*arguments, **keywords):
            result = function(*arguments, **keywords)
            if next(left) <= 1:
                os._exit(KILLED)
            return result

        setattr(owner, name, watched)

    return arm


def die_within_write(count):
    """Die with half of the n-th piece of a tensor file on the disk."""
    pwrite, left = os.pwrite, iter(range(count, -1, -1))

    def halved(descriptor, view, offset):
        if next(left) <= 1:
            pwrite(descriptor, view[: len(view) // 2], offset)
            os._exit(KILLED)
        return pwrite(descriptor, view, offset)

    os.pwrite = halved


# The model has three blocks: the first three of ChainStore.keep are the measurement's, the others the assembly's.
KILLERS = {
    "a gradient's file": die_before(survey, "save_sensitivities"),
    "keep": die_before(ChainStore, "keep"),
    "kept": die_after(ChainStore, "keep"),
    "save": die_before(Measurement, "save"),
    "put": die_before(FormStore, "put"),
    "stored": die_after(FormStore, "put"),
    "write": die_within_write,
    "replace": die_before(Path, "replace"),
    "receipt": die_before(Run, "_receipt"),
    "rename": die_before(Path, "rename"),
    "rmdir": die_before(os, "rmdir"),
}
POINTS = [
    ("a gradient's file", 1),
    ("keep", 2),
    ("keep", 5),
    ("kept", 6),
    ("write", 20),
]
# The others in the long form.
SHORT = [("keep", 2), ("write", 20)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    log = out.with_name("log")
    assert in_child(out, log) == 0
    return out, log.read_text().splitlines()


def same(out, other):
    return all((out / name).read_bytes() == (other / name).read_bytes() for name in ("model.safetensors", "plan.json", "modicum.json"))


# The same bytes


@pytest.mark.parametrize("point, count", [pytest.param(*place, marks=[] if place in SHORT else pytest.mark.slow) for place in POINTS])
def test_a_killed_run_continues_to_the_same_bytes(uninterrupted, tmp_path, point, count):
    out = tmp_path / "out"
    assert in_child(out, point=point, count=count) == KILLED
    assert not out.exists() and (tmp_path / "out.partial").is_dir()
    assert in_child(out) == 0
    assert same(out, uninterrupted[0])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_run_killed_again_and_again_gets_there(uninterrupted, tmp_path):
    out = tmp_path / "out"
    for point, count in (("kept", 1), ("save", 3), ("stored", 2), ("replace", 4), ("receipt", 1)):
        assert in_child(out, point=point, count=count) == KILLED
    assert in_child(out) == 0
    assert same(out, uninterrupted[0])


def test_the_receipt_of_a_continued_run_tells_the_same(uninterrupted, tmp_path):
    assert in_child(tmp_path / "out", point="kept", count=4) == KILLED
    assert in_child(tmp_path / "out") == 0
    one, other = (json.loads((out / "receipt.json").read_text()) for out in (uninterrupted[0], tmp_path / "out"))
    for name in ("bytes", "sites", "predicted_harm", "quality", "coverage", "events", "data", "model"):
        assert one[name] == other[name]


# Nothing twice


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), 5])
def test_finished_units_are_not_done_again(uninterrupted, tmp_path, count):
    log, whole = tmp_path / "log", uninterrupted[1]
    assert in_child(tmp_path / "out", log, "kept", count) == KILLED
    before = log.read_text().splitlines()
    log.unlink()
    assert in_child(tmp_path / "out", log) == 0
    after = log.read_text().splitlines()
    units = [{line for line in lines if not line.startswith("solve")} for lines in (before, after)]
    assert units[0] and not units[0] & units[1]
    assert sorted(before + after) == sorted(whole)


def test_a_run_killed_as_it_moves_its_files_solves_nothing_again(tmp_path):
    assert in_child(tmp_path / "out", point="rename", count=1) == KILLED
    assert in_child(tmp_path / "out", tmp_path / "log") == 0
    assert not [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("solve")]


# Other settings


@pytest.mark.parametrize(
    "first", [{"budget": "7bpw"}, *(pytest.param(w, marks=pytest.mark.slow) for w in ({"weights_seed": 1}, {"keep": ("o_proj",)}))]
)
def test_a_partial_of_another_request_is_started_afresh(uninterrupted, tmp_path, first):
    log = tmp_path / "log"
    assert in_child(tmp_path / "out", point="kept", count=5, **first) == KILLED
    assert in_child(tmp_path / "out", log) == 0
    assert same(tmp_path / "out", uninterrupted[0])
    assert sorted(log.read_text().splitlines()) == sorted(uninterrupted[1])


# What is not ours


@pytest.mark.parametrize(
    "files",
    [
        {"thesis.txt": "ten years of work"},
        {"state.json": '{"format": "another"}'},
        {"state.json": "[1, 2]"},
        {"state.json": "not json"},
        {"state.json": b"\xff\xfe"},
    ],
)
def test_a_folder_of_somebody_else_is_refused_untouched(tmp_path, files):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    for name, content in files.items():
        (partial / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = {path: path.read_bytes() for path in partial.iterdir()}
    with pytest.raises(SettingError, match=r"out\.partial: exists and is no interrupted run\. Move it away"):
        fit(tmp_path / "out")
    assert {path: path.read_bytes() for path in partial.iterdir()} == before
    assert list(tmp_path.iterdir()) == [partial]


def test_a_file_in_the_place_of_the_partial_is_refused_untouched(tmp_path):
    (tmp_path / "out.partial").write_text("mine")
    with pytest.raises(modicum.ModicumError, match=r"out\.partial"):
        fit(tmp_path / "out")
    assert (tmp_path / "out.partial").read_text() == "mine" and not (tmp_path / "out").exists()


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "out.partial").mkdir()
    assert fit(tmp_path / "out", harm="error").out.is_dir()


# Two at once


class At(Quiet):
    """Calls a function as a stage begins."""

    def __init__(self, stage, function):
        self.stage, self.function = stage, function

    def start(self, stage, total):
        if stage == self.stage:
            self.function()


@pytest.mark.parametrize("stage", ["measure", "export"])
def test_the_second_of_two_runs_stops(tmp_path, stage):
    def second():
        with pytest.raises(SettingError) as caught:
            fit(tmp_path / "out", harm="error")
        told.append(str(caught.value))

    told = []
    fit(tmp_path / "out", harm="error", progress=At(stage, second))
    assert told == [f"{tmp_path / 'out'}: is being written by another run. Wait for it, or choose another --out."]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_lock_of_a_dead_run_holds_nobody(tmp_path):
    assert in_child(tmp_path / "out", point="kept", count=1) == KILLED
    assert (tmp_path / "out.partial.lock").exists()
    assert in_child(tmp_path / "out") == 0


# What is there already


# An output as an earlier version wrote it: known by its receipt, without a list of its files.
OLD = {"config.json": "old", "model.safetensors": "old", "receipt.json": '{"format": "modicum-receipt"}'}


@pytest.fixture
def old(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name, text in OLD.items():
        (out / name).write_text(text)
    return out


def is_old(out):
    return {path.name: path.read_bytes() for path in out.iterdir()} == {name: text.encode() for name, text in OLD.items()}


def test_an_output_is_not_overwritten_unasked(old, tmp_path):
    with pytest.raises(SettingError, match="exists already"):
        fit(old)
    assert is_old(old) and list(tmp_path.iterdir()) == [old]


def test_an_output_that_appears_during_the_run_is_not_overwritten_unasked(tmp_path):
    def appear():
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("ten years of work")

    with pytest.raises(SettingError, match="exists already"):
        fit(tmp_path / "out", harm="error", progress=At("assemble", appear))
    assert (tmp_path / "out" / "thesis.txt").read_text() == "ten years of work"


@pytest.mark.parametrize("owner, name", [(Measurement, "run"), (Assembly, "run"), (verify, "reloaded"), (Made, "quality")])
def test_an_output_outlives_a_run_that_fails(old, monkeypatch, owner, name):
    def fail(*_, **__):
        raise ModelError("fails here.")

    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(ModelError, match="fails here"):
        fit(old, overwrite=True)
    assert is_old(old)


@pytest.mark.parametrize(
    "point, count",
    [("rename", 2), *(pytest.param(*place, marks=pytest.mark.slow) for place in (("receipt", 1), ("rename", 1), ("rmdir", 1)))],
)
def test_an_output_is_whole_or_gone_when_its_replacement_dies(uninterrupted, old, point, count):
    assert in_child(old, point=point, count=count, overwrite=True) == KILLED
    assert not old.exists() or is_old(old) or same(old, uninterrupted[0])
    assert in_child(old, overwrite=True) == 0
    assert same(old, uninterrupted[0])


def test_an_output_is_replaced_where_asked(uninterrupted, old, tmp_path):
    assert in_child(old, overwrite=True) == 0
    assert same(old, uninterrupted[0])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_partial_is_not_left_behind_by_success(uninterrupted):
    out, _ = uninterrupted
    assert not out.with_name("out.partial").exists() and not out.with_name("out.partial.lock").exists()


@pytest.mark.parametrize("method", ["ziplm keep=0.5 | gptq bits=4 sweeps=0", "flap keep=0.5", "replaceme count=1"])
def test_what_a_structural_step_made_is_not_made_again(tmp_path, monkeypatch, method):
    model, batches = zoo.build("gpt2" if method.startswith("flap") else "llama")
    again = lambda name: modicum.fit(model, method=method, data=batches, out=tmp_path / name, target="modicum")
    again("whole")

    def dies(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Assembly, "run", dies)
        with pytest.raises(KeyboardInterrupt):
            again("resumed")
    monkeypatch.setattr(structure, "structural", None)
    again("resumed")
    for path in (tmp_path / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "resumed" / path.name).read_bytes()
    receipts = [json.loads((tmp_path / name / "receipt.json").read_text()) for name in ("whole", "resumed")]
    assert receipts[0]["events"] == receipts[1]["events"]
