"""What may be replaced: only what a run wrote, and never what is read."""

import json

import pytest

from modicum.core.errors import SettingError
from modicum.core.output import mark, require_apart, require_ours


@pytest.fixture
def out(tmp_path):
    """An output as a run leaves it."""
    folder = tmp_path / "out"
    (folder / "1_Pooling").mkdir(parents=True)
    for name in ("model.safetensors", "1_Pooling/config.json", "odd[1]*.txt"):
        (folder / name).write_text("")
    mark(folder)
    return folder


def test_what_a_run_wrote_may_be_replaced(out):
    require_ours(out, "--out")
    (out / "model.safetensors").write_text("edited since")
    require_ours(out, "--out")


@pytest.mark.parametrize("name", ["notes.txt", "1_Pooling/mine", "odd1x.txt", ".hidden", "photos/one.png"])
def test_a_file_added_later_keeps_an_output(out, name):
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    with pytest.raises(SettingError, match="which no run wrote"):
        require_ours(out, "--out")


def test_a_link_to_a_folder_counts_as_a_file(out, tmp_path):
    (out / "more").symlink_to(tmp_path)
    with pytest.raises(SettingError, match="holds more, which no run wrote"):
        require_ours(out, "--out")


def test_a_folder_of_others_a_file_and_a_dangling_link_are_kept(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("model", "link", "model/model.safetensors", "dangling"):
        with pytest.raises(SettingError):
            require_ours(tmp_path / name, "--out")


def test_an_empty_folder_may_be_replaced(tmp_path):
    require_ours(tmp_path, "--out")


def test_an_output_without_a_list_is_known_by_its_receipt(tmp_path):
    for name in ("model.safetensors", "tokenizer.json", "report.html"):
        (tmp_path / name).write_text("")
    (tmp_path / "receipt.json").write_text(json.dumps({"format": "modicum-receipt"}))
    require_ours(tmp_path, "--out")
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(SettingError, match=r"holds thesis\.txt"):
        require_ours(tmp_path, "--out")


def test_out_is_neither_above_nor_inside_what_is_read(tmp_path):
    source = tmp_path / "home" / "model"
    source.mkdir(parents=True)
    (tmp_path / "link").symlink_to(source)
    (source / "text.txt").write_text("")
    for out in (source, tmp_path / "home", tmp_path, source / "inside" / "deep", tmp_path / "link", tmp_path / "link" / "x"):
        with pytest.raises(SettingError, match="Choose another --out"):
            require_apart(out, [source], "--out")
    with pytest.raises(SettingError, match="must not contain"):
        require_apart(source, [source / "text.txt"], "--out")
    require_apart(tmp_path / "home" / "model2", [source], "--out")
    require_apart(tmp_path / "home" / "out", [source], "--out")
