"""Hostile files: nothing but the project's own errors, nothing touched outside the folder, no code run, no memory taken on a file's word."""

import importlib.util
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import modicum
from modicum.cli.main import main
from modicum.core.errors import ModelError, ModicumError
from modicum.measure.measured import Measured
from modicum.models.open import open_model
from modicum.receipt import evaluate

_spec = importlib.util.spec_from_file_location("hostile_readers", Path(__file__).with_name("readers.py"))
readers = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = readers
_spec.loader.exec_module(readers)
READERS, SINGLE = readers.READERS, readers.SINGLE

# Cases in the short form, and in the long one: 20,000 in all.
SHORT = {
    "coded": 30,
    "coded on one grid": 10,
    "tensors": 60,
    "index": 60,
    "plan": 60,
    "merge plan": 60,
    "config": 60,
    "receipt": 5,
    "adapter": 40,
    "turned adapter": 30,
    "texts": 60,
    "parquet": 60,
    "pictures": 40,
    "recordings": 40,
    **dict.fromkeys(("pack-quantized", "gptq", "awq", "fp8", "mxfp4", "bitsandbytes"), 15),
}
LONG = {
    **{"tensors": 2500, "index": 2500, "plan": 2000, "config": 1500, "receipt": 200, "measurement": 800, "checkpoint": 800},
    **{
        "container": 700,
        "coded": 700,
        "coded on one grid": 300,
        "masked": 400,
        "narrow": 500,
        "transformers": 400,
        "tokenizer": 200,
        "texts": 1500,
        "parquet": 1500,
    },
    **{"pictures": 1500, "recordings": 1500, "compressed": 800, "captions": 800, "gguf": 1000},
    **dict.fromkeys(("pack-quantized", "gptq", "awq", "fp8", "mxfp4", "bitsandbytes"), 400),
    "delta": 1500,
    "merge plan": 2000,
    "adapter": 1000,
    "turned adapter": 500,
    "applied": 400,
    "answers": 400,
}


@pytest.fixture(scope="session")
def spoilt(tmp_path_factory):
    """For each reader, a valid folder to spoil."""
    return cache(lambda name: readers.Spoilt(READERS[name], tmp_path_factory.mktemp("hostile") / name))


@pytest.fixture
def copied(spoilt, tmp_path):
    """A copy of a reader's folder, to change for good."""
    return lambda name: Path(shutil.copytree(spoilt(name).folder, tmp_path / name))


def search(folder, cases):
    """Spoil and read in ``cases`` ways; how many were read, and how many of them refused."""
    count = [0, 0]

    @settings(max_examples=cases, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def spoil(data):
        said = folder.read(lambda below: data.draw(st.integers(0, below - 1)))
        count[0] += 1
        count[1] += bool(said)

    spoil()
    return count


@pytest.mark.parametrize(
    "touch",
    [
        lambda above: (above / "canary").read_text(),
        lambda above: (above / "new").touch(),
        lambda above: (above / "home" / ".." / "canary").unlink(),
        lambda above: (above / "home" / "link").read_text(),
        lambda above: subprocess.run(["true"], check=True),
        lambda above: pickle.loads(pickle.dumps(os.getcwd)),
    ],
    ids=["reading", "writing", "removing", "through a link", "a program", "a pickle"],
)
def test_the_watch_sees(tmp_path, touch):
    (tmp_path / "home").mkdir()
    (tmp_path / "canary").touch()
    (tmp_path / "home" / "link").symlink_to("../canary")
    with pytest.raises(AssertionError), readers.WATCH.over(tmp_path / "home"):
        touch(tmp_path)
    with readers.WATCH.over(tmp_path):
        (tmp_path / "home" / "own").write_text("")


def test_errors_of_other_kinds_come_through(spoilt):
    with pytest.raises(KeyError):
        readers.attempt(lambda folder: {}[folder], spoilt("plan").folder)


@pytest.mark.parametrize("name", READERS)
def test_only_our_errors_and_nothing_outside(spoilt, name):
    cases, refused = search(spoilt(name), SHORT.get(name, 12))
    assert cases and refused


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_ten_thousand_cases(spoilt, capsys):
    found = {name: search(spoilt(name), cases) for name, cases in LONG.items()}
    with capsys.disabled():
        for name, (cases, refused) in found.items():
            print(f"\n{name}: {cases} cases, {refused} refused", end="")
        print(f"\nhostile files: {sum(cases for cases, _ in found.values())} cases")
    assert sum(cases for cases, _ in found.values()) >= 10_000


@pytest.mark.parametrize("part", ["data", "settings", "targets", "menu"])
def test_a_measurement_that_lacks_a_part(copied, part):
    """Signed anew, as somebody would who means harm."""
    folder = copied("measurement")
    body = json.loads((folder / "measurement.json").read_text())
    del body[part]
    (folder / "measurement.json").write_text(json.dumps(body))
    readers.sign(folder)
    with pytest.raises(ModicumError):
        read = Measured.read(folder)
        assert read.splits and read.adopt({}, None, None, "demo")


FUZZ_SECONDS = 20


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_coverage_guided(name, capsys):
    pytest.importorskip("atheris", reason="the coverage-guided search needs atheris: pip install -e '.[fuzz]'")
    command = [sys.executable, str(Path(__file__).with_name("fuzz.py")), name, str(FUZZ_SECONDS)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=250)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    runs = int(re.findall(r"number_of_executed_units: (\d+)", done.stderr)[-1])
    with capsys.disabled():
        print(f"\natheris, {name}: {runs} cases", end="")
    assert runs > FUZZ_SECONDS


# Links, pipes and devices

LINKED = {
    "plan": "plan.json", "receipt": "receipt.json", "container": "modicum.json", "checkpoint": "config.json", "tokenizer": "tokenizer.json",
    "index": readers.INDEX, "tensors": SINGLE, "transformers": "config.json",
}  # fmt: skip
# A plan or a receipt is a file of its own, which may lie anywhere.
GUARDED = sorted(LINKED.keys() - {"plan", "receipt", "tensors"})


@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.parametrize("target", ["file", "folder above", "circle"])
def test_links_that_lead_outside(copied, tmp_path, name, target):
    folder = copied(name)
    path = folder / LINKED[name]
    if target == "file":
        shutil.copy(path, tmp_path / "elsewhere")
    path.unlink()
    path.symlink_to({"file": tmp_path / "elsewhere", "folder above": "..", "circle": path}[target])
    with readers.WATCH.over(folder):
        assert readers.attempt(READERS[name].read, folder)


@pytest.mark.parametrize("name", ["container", "checkpoint", "transformers"])
def test_what_stands_beside_may_not_lead_outside(copied, tmp_path, name):
    """A file that would be copied along, or read by a library."""
    folder = copied(name)
    (tmp_path / "secret").write_text("canary")
    (folder / "README.md").unlink(missing_ok=True)  # the card
    (folder / "README.md").symlink_to(tmp_path / "secret")
    assert "it links outside" in readers.attempt(READERS[name].read, folder)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", LINKED)
@pytest.mark.parametrize("kind", ["pipe", "folder", "zeros", "none", "empty"])
def test_what_is_no_regular_file(copied, name, kind):
    folder = copied(name)
    path = folder / LINKED[name]
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "zeros":
        path.symlink_to("/dev/zero")
    elif kind == "empty":
        path.touch()
    if name == "container" and kind == "none":
        assert "must" in readers.attempt(READERS[name].read, folder)  # it is taken for one of Transformers, and is none
    else:
        assert readers.attempt(READERS[name].read, folder)


@pytest.mark.parametrize("home", ["../canary", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "model.safetensors\0", "~", "\ud800"])
def test_shards_elsewhere(copied, home):
    folder = copied("index")
    body = json.loads((folder / readers.INDEX).read_text())
    first = next(iter(body["weight_map"]))
    (folder / readers.INDEX).write_text(json.dumps(body | {"weight_map": body["weight_map"] | {first: home}}))
    with readers.WATCH.over(folder):
        assert readers.attempt(READERS["index"].read, folder)


def test_a_tokenizer_that_names_a_file_elsewhere(copied, tmp_path):
    folder = copied("tokenizer")
    (tmp_path / "canary").write_text("canary")
    body = json.loads((folder / "tokenizer_config.json").read_text())
    names = ("vocab_file", "merges_file", "tokenizer_file", "chat_template_file", "name_or_path", "added_tokens_file")
    (folder / "tokenizer_config.json").write_text(json.dumps(body | dict.fromkeys(names, str(tmp_path / "canary"))))
    with readers.WATCH.over(folder):
        readers.attempt(READERS["tokenizer"].read, folder)


# Code


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def pickled(folder, what):
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    if isinstance(what, bytes):
        (folder / "pytorch_model.bin").write_bytes(what)
    else:
        torch.save(what, folder / "pytorch_model.bin")


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("form", ["zip", "raw"])
def test_no_pickle_runs(copied, tmp_path, form, allowed):
    folder, canary = copied("checkpoint"), tmp_path / "canary"
    state = {"model.norm.weight": torch.ones(16), "trap": Trap(canary)}
    pickled(folder, pickle.dumps(state) if form == "raw" else state)
    for read in (lambda where: open_model(where, allow_pickle=allowed), modicum.load, lambda where: evaluate(where, data=[])):
        with pytest.raises(ModelError, match="pickle"):
            read(folder)
    assert not canary.exists()


@pytest.mark.parametrize("state", [[1], {"a": "b"}, {1: torch.ones(2)}, {"model.norm.weight": torch.ones(3)}, torch.ones(3), b"", b"\x80"])
def test_pickles_of_other_things(copied, state):
    folder = copied("checkpoint")
    pickled(folder, state)
    with pytest.raises(ModelError, match="pickle"):
        open_model(folder, allow_pickle=True)


CODE = "from pathlib import Path\nPath(__file__).with_name('canary').touch()\nclass Mine: pass\n"


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "entry",
    [
        {"auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine", "AutoTokenizer": ["mine.Mine", None]}},
        {"auto_map": {"AutoConfig": "owner/name--mine.Mine", "AutoTokenizer": ["owner/name--mine.Mine", None]}},
        {"text_config": {"auto_map": {"AutoConfig": "mine.Mine"}}},
        {"attn_implementation": "owner/kernel"},
    ],
    ids=["own code", "code of the hub", "inner config", "kernel"],
)
def test_no_code_of_a_model_runs(copied, monkeypatch, file, entry):
    folder = copied("tokenizer")
    (folder / "mine.py").write_text(CODE)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | entry))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # nobody is asked
    for read in (open_model, modicum.load, lambda where: evaluate(where, samples=1, tokens=16), READERS["tokenizer"].read):
        with readers.WATCH.over(folder), pytest.raises(ModelError, match="Pass --trust-remote-code"):
            read(folder)
    assert not (folder / "canary").exists()


def test_no_generation_code_runs(copied):
    folder = copied("tokenizer")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(CODE)
    with readers.WATCH.over(folder):
        assert not readers.attempt(modicum.load, folder)
    assert not (folder / "custom_generate" / "canary").exists()


# Weights that are not there


def rewritten(folder, change):
    """The checkpoint's single file with other tensors."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, {"format": "pt"})


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"),
        lambda tensors: tensors.update({"model.norm.weight": torch.ones(17)}),
        lambda tensors: tensors.update({"model.norm.weight": torch.ones(16, dtype=torch.int64)}),
    ],
    ids=["missing", "of another shape", "of whole numbers"],
)
@pytest.mark.parametrize("read", [open_model, modicum.load], ids=["open_model", "load"])
def test_weights_are_never_made_up(copied, read, change):
    """Transformers would fill what is missing with random numbers."""
    folder = copied("tensors")
    rewritten(folder, change)
    with pytest.raises(ModelError, match=r"model\.(norm|layers\.1\.mlp\.up_proj)\.weight"):
        read(folder)


def test_experts_are_never_left_blank(tmp_path):
    from modicum.testing import zoo

    module, batches = zoo.build("qwen3_moe")
    out = modicum.fit(module, method="nearest bits=4", data=batches, target="modicum", out=tmp_path / "out").out
    body = json.loads((out / "modicum.json").read_text())
    del body["units"]["model.layers.1.mlp.experts.down_proj[3]"]
    (out / "modicum.json").write_text(json.dumps(body))
    with pytest.raises(ModelError, match="must hold every expert of"):
        modicum.load(out)


# Memory

_BOMBS = Path(__file__).with_name("bombs.py")


@pytest.mark.timeout(120)
def test_no_memory_is_taken_on_a_files_word(copied):
    """In a process that may take 400 MB beyond its libraries: what claims more is refused in seconds, with memory flat."""
    folders = [str(copied(name)) for name in ("tensors", "container", "plan")]
    done = subprocess.run([sys.executable, str(_BOMBS), *folders], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all refused" in done.stdout


# The command line


@pytest.mark.parametrize("name", ["plan.json", "receipt.json"])
def test_a_pipe_for_a_plan_or_receipt_is_one_sentence(copied, tmp_path, name):
    folder = copied("plan")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    result = CliRunner().invoke(main, ["export", str(folder), "--target", "modicum", "--out", str(tmp_path / "out")], prog_name="modicum")
    assert result.exit_code == 2 and "it is no regular file" in result.stderr and len(result.stderr.splitlines()) == 1
