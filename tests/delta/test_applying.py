"""Deltas on checkpoints: what is written is the base but for what changes, and the base comes back to the byte."""

import filecmp
import json

import pytest
import torch

from modicum.core.errors import ModelError, SettingError
from modicum.delta import Delta
from modicum.delta.applying import apply, revert
from modicum.models.trainable import trainable
from modicum.testing import zoo
from modicum.train.trained import trained


def learnt(folder, name, option="lora rank=2"):
    """A checkpoint in ``folder``, a delta on it, and what its weights must become."""
    model = zoo.build(name)[0]
    model.save_pretrained(folder)
    model = type(model).from_pretrained(folder)
    with trained(model, option) as t:
        draw = torch.Generator().manual_seed(1)
        for parameter in t.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=draw)
        return type(model), t.delta(name), {unit: t.weight(unit).detach() for unit in t.places}


# Experts that are stored one by one and stacked when they are loaded, a transposed layer, a layer whose weight another module reads, tied tables.
@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gpt2", "mamba", "t5"])
def test_transformers_loads_what_was_learnt_and_the_base_comes_back(tmp_path, name):
    cls, delta, wanted = learnt(tmp_path / "base", name)
    written = apply(tmp_path / "base", [delta], tmp_path / "out")
    module = cls.from_pretrained(tmp_path / "out")
    units = trainable(module)
    for unit, weight in wanted.items():
        assert torch.equal(units[unit].matrix(module.get_parameter(units[unit].parameter).detach()), weight), unit
    assert len(written.changed) >= len({units[unit].parameter for unit in wanted})
    assert written.displaced == (tmp_path / "out" / "displaced.bin").stat().st_size > 0
    revert(tmp_path / "out", tmp_path / "back")
    files = sorted(path.name for path in (tmp_path / "base").iterdir())
    assert all(filecmp.cmp(tmp_path / "base" / file, tmp_path / "back" / file, shallow=False) for file in files)
    assert [path.name for path in sorted((tmp_path / "back").iterdir()) if path.name[0] != "."] == files


def test_a_result_that_changed_since_is_not_taken_for_the_base(tmp_path):
    _, delta, _ = learnt(tmp_path / "base", "llama")
    apply(tmp_path / "base", [delta], tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")  # in the norm at the end, which the delta leaves alone
    with pytest.raises(ModelError, match="must hold the base as it was, model.safetensors differs"):
        revert(tmp_path / "out", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_scale_zero_changes_no_byte(tmp_path):
    _, delta, _ = learnt(tmp_path / "base", "llama")
    written = apply(tmp_path / "base", [delta, delta], tmp_path / "out", scale=0.0)
    assert written.changed == () and written.displaced == 0
    assert filecmp.cmp(tmp_path / "base" / "model.safetensors", tmp_path / "out" / "model.safetensors", shallow=False)


def test_what_cannot_be_applied_leaves_nothing(tmp_path):
    _, delta, _ = learnt(tmp_path / "base", "llama")
    learnt(tmp_path / "other", "qwen2")
    first = next(iter(delta.forms))
    with pytest.raises(ModelError, match="another weight than this base has"):
        apply(tmp_path / "other", [delta], tmp_path / "out")
    with pytest.raises(ModelError, match="has no weight nothing"):
        apply(tmp_path / "base", [Delta({"nothing": delta.forms[first]})], tmp_path / "out")
    with pytest.raises(ModelError, match="as the delta makes it: weights must be finite"):
        apply(tmp_path / "base", [delta], tmp_path / "out", scale=float("inf"))
    with pytest.raises(SettingError, match="at least one delta"):
        apply(tmp_path / "base", [], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "other"]
    (tmp_path / "out").mkdir()
    with pytest.raises(SettingError, match="exists already"):
        apply(tmp_path / "base", [delta], tmp_path / "out")


@pytest.mark.parametrize("spoil", ["bits", "record", "size", "none"])
def test_what_was_kept_must_be_whole(tmp_path, spoil):
    _, delta, _ = learnt(tmp_path / "base", "llama")
    apply(tmp_path / "base", [delta], tmp_path / "out", reversible=spoil != "none")
    displaced, record = tmp_path / "out" / "displaced.bin", tmp_path / "out" / "applied.json"
    if spoil == "bits":
        data = bytearray(displaced.read_bytes())
        data[10:20] = bytes(10)
        displaced.write_bytes(data)
    elif spoil == "size":
        displaced.write_bytes(displaced.read_bytes()[:-1])
    elif spoil == "record":
        body = json.loads(record.read_text())
        body["changed"] = dict.fromkeys(body["changed"], -1)
        record.write_text(json.dumps(body))
    with pytest.raises(ModelError, match=r"Take the base itself"):
        revert(tmp_path / "out", tmp_path / "back")
    assert not (tmp_path / "back").exists() and not (tmp_path / "back.partial").exists()


def test_what_another_run_left_beside_it_stays(tmp_path):
    _, delta, _ = learnt(tmp_path / "base", "llama")
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "state.json").write_text("{}")
    apply(tmp_path / "base", [delta], tmp_path / "out")
    assert (tmp_path / "out.partial" / "state.json").read_text() == "{}"


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    _, delta, _ = learnt(tmp_path / "base", "llama")
    apply(tmp_path / "base", [delta], tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("modicum.delta.applying.patch", full)
    with pytest.raises(SettingError, match="No space left on device"):
        apply(tmp_path / "base", [delta], tmp_path / "out", scale=0.5, overwrite=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    _, delta, _ = learnt(tmp_path / "base", "llama")
    apply(tmp_path / "base", [delta], tmp_path / "out")
    (tmp_path / "secret").write_text("mine")
    for folder in ("base", "out"):
        (tmp_path / folder / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="links outside"):
        apply(tmp_path / "base", [delta], tmp_path / "other")
    revert(tmp_path / "out", tmp_path / "back")
    assert not (tmp_path / "other").exists() and not (tmp_path / "back" / "notes.txt").exists()
