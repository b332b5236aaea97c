import json
import os
from pathlib import Path

import pytest

from modicum.core import files
from modicum.core.errors import ModelError
from modicum.core.files import leads_outside, parse_json, read_json, require_inside


def test_reads_what_json_writes(tmp_path):
    value = {"a": [1, 2.5, None, True, "é"], "b": {"c": []}}
    (tmp_path / "a.json").write_text(json.dumps(value), encoding="utf-8")
    assert read_json(tmp_path / "a.json") == read_json(str(tmp_path / "a.json")) == value


@pytest.mark.parametrize(
    "raw, said",
    [
        (b"", "Expecting value"),
        (b"\xff", "utf-8"),
        (b"{} {}", "Extra data"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1, "a": 1}', "a key comes twice"),
        (b'[{"b": {"a": 1, "a": 2}}]', "a key comes twice"),
        (b'{"\\ud800": 1}', "surrogates"),
        (b'{"a": "\\ud800"}', "surrogates"),
        (b"9" * 5000, "digits"),
    ],
)
def test_what_is_not_json_is_a_value_error(raw, said):
    with pytest.raises(ValueError, match=said):
        parse_json(raw)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_only_regular_files_are_read(tmp_path, kind):
    path = tmp_path / "a.json"
    {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda path: path.symlink_to("/dev/zero")}[kind](path)
    with pytest.raises(ValueError, match="it is no regular file"):
        read_json(path)


def test_no_file_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        read_json(tmp_path / "none.json")


def test_large_files_are_refused_before_they_are_read(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("[1, 2]")
    monkeypatch.setattr(files, "MAX_JSON", 5)
    with pytest.raises(ValueError, match="it has 6 bytes, more than 5"):
        read_json(tmp_path / "a.json")


def test_files_are_closed_again(tmp_path):
    (tmp_path / "a.json").write_text("[")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in (tmp_path, tmp_path / "a.json", tmp_path / "none"):
        with pytest.raises(ValueError):
            read_json(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_links_out_of_a_folder(tmp_path):
    home = tmp_path / "home"
    (home / "inner").mkdir(parents=True)
    (tmp_path / "secret").touch()
    (home / "a").touch()
    (home / "within").symlink_to("a")
    require_inside(home)
    for target in ("../secret", tmp_path / "secret", "..", "/", "../none", "inner/../../secret"):
        (home / "link").symlink_to(target)
        assert leads_outside(home / "link", home)
        with pytest.raises(ModelError, match="'link' must lie in the directory, and it links outside"):
            require_inside(home)
        (home / "link").unlink()
    (home / "link").symlink_to("link")
    assert leads_outside(home / "link", home)


def test_blobs_of_a_hub_cache_are_inside(tmp_path):
    snapshot = tmp_path / "models--x" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--x" / "blobs").mkdir()
    (tmp_path / "models--x" / "blobs" / "abc").touch()
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    require_inside(snapshot)
