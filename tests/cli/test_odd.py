"""What people type by mistake, or bring because it lies there: one sentence that says what to do, code 2, and nothing lost."""

import json
import shutil

import pytest
from click.testing import CliRunner
from safetensors.torch import save_file

from modicum.cli.main import main
from modicum.core.errors import SettingError
from modicum.fit import fit
from modicum.models.located import DEMO
from modicum.receipt import evaluate

FIT = ("--bpw", "4", "--quiet")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with what lies about in one."""
    monkeypatch.chdir(tmp_path)
    for name in ("gguf", "adapter", "pipeline/unet", "runs/model", "pointer", "mine"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "gguf" / "model-q4.gguf").write_bytes(b"GGUF" + bytes(50))
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    (tmp_path / "pipeline" / "unet" / "config.json").write_text("{}")
    (tmp_path / "runs" / "model" / "config.json").write_text("{}")
    for file in DEMO.glob("*.json"):
        shutil.copy(file, tmp_path / "pointer")
    (tmp_path / "pointer" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2097152\n")
    (tmp_path / "mine" / "notes").write_text("keep me")
    (tmp_path / "file").write_text("keep me")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    save_file({}, tmp_path / "runs" / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("gguf",), "GGUF files are compressed already: give the original checkpoint in safetensors, or fit and eval the file itself."),
        (("gguf/model-q4.gguf",), "must be a GGUF file that is whole"),
        (("adapter",), "It holds an adapter: merge it into its base model"),
        (("pipeline",), "It holds a pipeline of several models: give the directory of one of them"),
        (("runs",), "must hold config.json, does not. Give the directory that does: model."),
        (("runs/model.safetensors",), "is a file. Give the directory it lies in."),
        (("pointer",), "is a pointer of Git LFS to them. Fetch the file itself: git lfs pull."),
        (("circle",), "no such directory"),
        (("demo", "--out", "."), "must name a folder that a run can make"),
        (("demo", "--out", ""), "must name a folder that a run can make"),
        (("demo", "--out", "runs/.."), "must name a folder that a run can make"),
        (("demo", "--out", "circle"), "exists already"),
        (("demo", "--out", "x" * 300), "must be writable, is not (File name too long)"),
        (("demo", "--out", "file/sub"), "must be writable"),
        (("demo", "--out", "mine", "--overwrite"), "is not replaced: no run wrote it, and it holds notes."),
        (("demo", "--ram", "-1"), "--ram: must be a size such as 4.5MB or 2GiB"),
        (("demo", "--memory", "0"), "memory: must be a size such as 4.5MB or 2GiB"),
        (("demo", "--size", "\u22124MB"), "must be a size such as 4.5MB or 2GiB, got '\u22124MB'"),
        (("demo", "--size", "60%"), "must be a size such as 4.5MB or 2GiB"),
        (("demo", "--menu", ","), "menu: must name at least one option, ',' names none."),
        (("demo", "--menu", "int99"), "gptq.bits: must lie between 2 and 8, got 99."),
        (("demo", "--seed", "-1"), "seed: must be from 0 to 9223372036854775807, got -1."),
        (("demo", "--seed", "99999999999999999999"), "seed: must be from 0 to 9223372036854775807"),
    ],
)
def test_one_sentence_says_what_to_do(home, words, said):
    before = sorted(str(path) for path in home.rglob("*"))
    run = CliRunner().invoke(main, ["fit", *words, *FIT], catch_exceptions=False)
    assert run.exit_code == 2 and run.stdout == "", run.output
    (line,) = run.stderr.splitlines()
    assert line.startswith("modicum: ") and said in line
    assert sorted(str(path) for path in home.rglob("*")) == before
    assert (home / "mine" / "notes").read_text() == (home / "file").read_text() == "keep me"


def test_a_place_where_nothing_can_be_written_is_no_other_run(monkeypatch, tmp_path):
    def none(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("modicum.work.workdir.tempfile.TemporaryFile", none)
    with pytest.raises(SettingError, match=r"must be writable, is not \(Permission denied\)"):
        fit("demo", method="nearest bits=8", out=tmp_path / "out", samples=1, tokens=16, test_samples=1)


def test_a_seed_that_chance_would_refuse_at_the_end_is_refused_at_once():
    with pytest.raises(SettingError, match="seed: must be from 0 to"):
        evaluate("demo", seed=-1)
