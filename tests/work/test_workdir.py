"""The folder a run works in is known as ours and continued only where it is whole, wherever a run before it died."""

import json
import shutil
from pathlib import Path

import filelock
import pytest
import torch

from modicum.core.errors import SettingError
from modicum.core.output import mark
from modicum.core.tensorfile import TensorFile
from modicum.forms import Dense
from modicum.work.store import FormStore
from modicum.work.workdir import WorkDir


def place(tmp_path, **settings):
    return WorkDir(tmp_path / "out", "kind", **settings)


def begun(tmp_path, fingerprint="one"):
    """A folder with work of a run in it."""
    partial = place(tmp_path).begin(fingerprint)
    for name in ("measure", "assembly"):
        (partial / name).mkdir()
        (partial / name / "work").write_text(fingerprint)
    (partial / "plan.json").write_text(fingerprint)
    return partial


def contents(partial):
    return sorted(path.name for path in partial.iterdir())


def test_the_same_request_continues(tmp_path):
    begun(tmp_path)
    assert contents(place(tmp_path).begin("one")) == ["assembly", "measure", "plan.json", "state.json"]


def test_another_request_starts_afresh(tmp_path):
    begun(tmp_path)
    assert contents(place(tmp_path).begin("two")) == ["state.json"]


@pytest.mark.parametrize("written", ["", '{"format": "ki'])
def test_a_run_that_died_as_it_began_is_begun_again(tmp_path, written):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "state.json.new").write_text(written)
    assert contents(place(tmp_path).begin("one")) == ["state.json"]


@pytest.mark.parametrize("removed", range(3))
@pytest.mark.parametrize("then", ["one", "two", "three"])
def test_a_folder_that_was_being_cleared_is_cleared(tmp_path, monkeypatch, removed, then):
    """Whoever comes next: the run whose work it was finds none of it either, for some of it is gone."""
    partial, remove, left = begun(tmp_path), shutil.rmtree, iter(range(removed, -1, -1))

    def dies(path):
        if not next(left):
            raise KeyboardInterrupt
        remove(path)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "rmtree", dies)
        place(tmp_path).begin("two")
    assert contents(partial)
    assert contents(place(tmp_path).begin(then)) == ["state.json"]
    assert json.loads((partial / "state.json").read_text()) == {"format": "kind", "fingerprint": then}


def test_work_of_another_kind_is_refused_even_where_it_is_being_cleared(tmp_path):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "stale.json").write_text('{"format": "another"}')
    with pytest.raises(SettingError, match="is no interrupted run"):
        place(tmp_path).begin("one")
    assert contents(partial) == ["stale.json"]


def test_an_output_replaced_twice_is_the_last(tmp_path):
    """The first replacement died when all but its clearing was done."""
    partial = begun(tmp_path)
    for name in ("out", "out.partial/replaced", "out.partial/final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)
    mark(tmp_path / "out")
    place(tmp_path, overwrite=True).finish(partial / "final")
    assert (tmp_path / "out" / "which").read_text() == "out.partial/final"
    assert contents(tmp_path) == ["out"]


def test_a_lock_goes_while_it_is_held(tmp_path, monkeypatch):
    """Removed later, it could be the name of another run's lock."""
    unlink, tried = Path.unlink, []

    def watched(path, **settings):
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(path).acquire(timeout=0)
        tried.append(path.name)
        unlink(path, **settings)

    monkeypatch.setattr(Path, "unlink", watched)
    with place(tmp_path).held():
        pass
    assert tried == ["out.partial.lock"] and not (tmp_path / "out.partial.lock").exists()


def test_the_header_of_a_file_is_parsed_once_for_all_its_forms(tmp_path, monkeypatch):
    forms = {f"layer.{place}": Dense(torch.full((2, 3), float(place))) for place in range(5)}
    FormStore(tmp_path).put("block", forms)
    parsed, header = [], TensorFile._header
    monkeypatch.setattr(TensorFile, "_header", lambda file: parsed.append(file.path) or header(file))
    store = FormStore(tmp_path)
    assert all(torch.equal(store[name].dense(), form.dense()) for name, form in forms.items()) and len(store) == 5
    assert len(parsed) == 1
