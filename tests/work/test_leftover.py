"""What interrupted runs left is found by its marker and cleared away; what a run uses or somebody else wrote is not."""

import json
import os
import time

import filelock
import pytest
from click.testing import CliRunner

import modicum
from modicum.cli.main import main
from modicum.core.output import mark
from modicum.core.progress import Quiet
from modicum.testing import zoo
from modicum.work.leftover import leftovers
from modicum.work.workdir import RUN, WorkDir


class StoppedError(Exception):
    """The run is interrupted."""


class StopAt(Quiet):
    def __init__(self, stage, step):
        self.stage, self.left, self.now = stage, step, ""

    def start(self, stage, total):
        self.now = stage
        if stage == self.stage and not self.left:
            raise StoppedError

    def step(self):
        self.left -= self.now == self.stage
        if self.now == self.stage and not self.left:
            raise StoppedError


def begun(folder, name="out"):
    """A run's folder with work in it."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = WorkDir(folder / name, RUN).begin("fingerprint")
    (partial / "assembly" / "forms").mkdir(parents=True)
    (partial / "assembly" / "forms" / "layer.safetensors").write_bytes(b"x" * 1000)
    (partial / "plan.json").write_text("{}")
    return partial


def clean(*words):
    return CliRunner().invoke(main, ["clean", *map(str, words)], catch_exceptions=False)


@pytest.mark.parametrize(("stage", "step"), [("measure", 1), ("assemble", 1), ("judge", 1)])
def test_whatever_a_run_left_is_known_to_be_its_own(tmp_path, stage, step):
    module, batches = zoo.build("llama")
    with pytest.raises(StoppedError):
        given = {"menu": "int3,int8", "search_time": 0.0, "progress": StopAt(stage, step)}
        modicum.fit(module, "8bpw", data=batches, target="modicum", out=tmp_path / "out", **given)
    (one,) = leftovers(tmp_path)
    assert (one.path, one.kind, one.stays) == (tmp_path / "out.partial", "fit", "") and one.bytes > 0
    one.remove()
    assert not list(tmp_path.iterdir())


def test_nothing_is_removed_without_yes_and_nothing_else_with_it(tmp_path):
    partial, beside = begun(tmp_path / "deep" / "er"), tmp_path / "deep" / "mine.partial"
    beside.mkdir()
    (beside / "state.json").write_text(json.dumps({"format": "theirs"}))
    (tmp_path / "deep" / "er" / "out").mkdir()
    listed = clean(tmp_path)
    assert listed.exit_code == 0 and str(partial) in listed.stdout and "--yes" in listed.stdout and partial.exists()
    (row,) = json.loads(clean(tmp_path, "--json").stdout)
    assert row["bytes"] > 1000 and not row["removed"] and not row["stays"]
    assert clean(tmp_path, "--yes").exit_code == 0
    assert not partial.exists() and beside.exists() and (tmp_path / "deep" / "er" / "out").exists()
    assert "no run has left anything" in clean(tmp_path).stdout


@pytest.mark.parametrize(
    "foreign", ["notes.txt", "assembly/notes.txt", "other/a.safetensors", "final/notes.txt", "replaced/notes.txt", "link"]
)
def test_a_folder_with_anything_that_no_run_wrote_stays_whole(tmp_path, foreign):
    partial, other = begun(tmp_path, "a"), begun(tmp_path, "b")
    for name in ("final", "replaced"):
        (partial / name).mkdir()
        (partial / name / "model.safetensors").write_bytes(b"y")
        mark(partial / name)
    (partial / foreign).parent.mkdir(exist_ok=True)
    (partial / foreign).symlink_to(other) if foreign == "link" else (partial / foreign).write_text("mine")
    before = sorted(path for path in partial.rglob("*"))
    done = clean(tmp_path, "--yes")
    assert done.exit_code == 2 and f"it holds {foreign}, which no run wrote" in done.stderr and done.stderr.count("\n") == 1
    assert sorted(path for path in partial.rglob("*")) == before and not other.exists()


def test_what_a_run_is_using_stays(tmp_path):
    partial = begun(tmp_path)
    with filelock.FileLock(f"{partial}.lock"):
        (one,) = leftovers(tmp_path)
        assert one.stays == "a run is using it"
        assert "a run is using it" in clean(tmp_path, "--yes").stderr and (partial / "plan.json").exists()
    (one,) = leftovers(tmp_path)
    with filelock.FileLock(f"{partial}.lock"), pytest.raises(modicum.SettingError, match="a run is using it"):
        one.remove()  # it was free when it was looked at
    one.remove()
    assert not list(tmp_path.iterdir())


def test_a_former_result_goes_back_to_where_it_was(tmp_path):
    partial = begun(tmp_path)
    (partial / "replaced").mkdir()
    (partial / "replaced" / "model.safetensors").write_bytes(b"former")
    mark(partial / "replaced")
    assert "goes back to" in clean(tmp_path, "--yes").stdout
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"former" and not partial.exists()


def test_size_and_age_are_those_of_the_files(tmp_path):
    partial = begun(tmp_path)
    then = time.time() - 7200
    for path in partial.rglob("*"):
        os.utime(path, (then, then))
    (one,) = leftovers(tmp_path)
    assert 7190 < one.age < 7300 and one.bytes == sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    assert "2 h" in clean(tmp_path).stdout


def test_kept_answers_of_probes_are_known_by_what_is_in_them(tmp_path):
    kept = tmp_path / "probes"
    kept.mkdir()
    (kept / "a.json").write_text(json.dumps({"format": "modicum-probe", "version": 1}))
    (kept / "b.json").write_text("{}")
    assert "b.json" in clean(tmp_path, "--yes").stderr and (kept / "a.json").exists()
    (kept / "b.json").unlink()
    assert clean(tmp_path, "--yes").exit_code == 0 and not kept.exists()


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    done = clean(tmp_path / "none")
    assert done.exit_code == 2 and "must be a folder to look through, is none" in done.stderr
