"""The command in processes that may die, a small model for it, and when two outputs are the same."""

import json
import lzma
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from modicum.models.located import DEMO
from modicum.receipt import report
from modicum.testing import zoo

SERVER = Path(__file__).with_name("server.py")
# One of every family, and both kinds of structure.
MENU = "nearest bits=2,nearest bits=8,gptq bits=3 sweeps=0 | eora rank=2,svd keep=0.5,sparsegpt keep=0.5,ziplm keep=0.5,replaceme count=1"

LEARNING = ("--samples", 8, "--tokens", 16, "--test-samples", 2)
EDITING = ("--samples", 4, "--tokens", 32, "--test-samples", 2)
ADAPTING = ("--method", "lora rank=2", "--steps", 4, "--every", 2, "--batch", 2, "--tokens", 32, "--samples", 8, "--test-samples", 2)


class Home:
    """A folder in which one command writes ``out``."""

    def __init__(self, path, server, words):
        self.path, self.server, self.words = path, server, [*words, "--out", path / "out"]
        self.out, self.log = path / "out", path.with_name(path.name + ".log")
        path.mkdir()

    def run(self, *more, **fault):
        """Exit code of the command in a process of its own; negative for a signal. Of one that a fault stops, which process it is."""
        asked = {"words": [str(word) for word in (*self.words, *more)], "log": str(self.log), "home": str(self.path), "fault": fault}
        self.server.stdin.write(json.dumps(asked) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    @property
    def said(self):
        return self.log.read_text()

    def trace(self, *more):
        """What the uninterrupted command does to the disk, and its reads of the weights, line by line."""
        trace = self.path.with_name(self.path.name + ".trace")
        assert self.run(*more, trace=str(trace)) == 0, self.said
        return trace.read_text().splitlines()

    def files(self):
        """Everything in ``out`` but times: contents by name."""
        return {str(path.relative_to(self.out)): timeless(path) for path in sorted(self.out.rglob("*")) if path.is_file()}


def timeless(path):
    """What a file says beside the time and memory that its run took."""
    if path.name == "report.html":
        assert path.read_bytes().decode() == report(json.loads(path.with_name("receipt.json").read_text()))  # texts may hold a lone return
        return "as its receipt says"
    if path.suffix != ".json":
        return path.read_bytes()
    found = json.loads(path.read_text())
    if path.name in ("receipt.json", "measurement.json"):
        assert found.pop("stages")
        found.pop("hash", None)  # of the times too
        found.pop("seconds", None)
        found.pop("memory", None)
        for part in ("search", "healing"):
            (found.get(part) or {}).pop("seconds", None)
    return found


@pytest.fixture(scope="session")
def server():
    """The process that all others are forked from, with one thread: a fork has no other. Skips where there is no /proc."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("which file a process writes is read from /proc")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen([sys.executable, SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "ready\n"
        yield process


def make_model(path, cls, **settings):
    """A random model with the demo's tokenizer, in a directory, and beside it a text."""
    config = cls(vocab_size=1024, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, **settings)
    zoo.random_checkpoint(path, config)
    (path / "model.safetensors.index.json").unlink()
    (path / "model-00001-of-00001.safetensors").rename(path / "model.safetensors")
    for file in DEMO.glob("tokenizer*"):
        shutil.copy(file, path)
    text = lzma.decompress(DEMO.with_name("test.txt.xz").read_bytes())
    path.with_suffix(".txt").write_bytes(text[:30_000])
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Three blocks, 64 wide."""
    path = tmp_path_factory.mktemp("model")
    return make_model(path, transformers.LlamaConfig, hidden_size=64, intermediate_size=128, num_hidden_layers=3)


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory):
    """Two blocks, wide enough for threads to share the work."""
    path = tmp_path_factory.mktemp("wide_model")
    return make_model(path, transformers.LlamaConfig, hidden_size=320, intermediate_size=640, num_hidden_layers=2)


@pytest.fixture(scope="session")
def starved_model(tmp_path_factory):
    """Three blocks of experts, more than a few tokens can feed: there is something to tell of each."""
    path, experts = tmp_path_factory.mktemp("starved_model"), {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return make_model(path, transformers.Qwen3MoeConfig, hidden_size=64, head_dim=16, num_hidden_layers=3, mlp_only_layers=[], **experts)


@pytest.fixture(scope="session")
def small(model):
    """Settings that make a run short."""
    # Which dtype is faster here is measured anew in every home: it is said.
    sizes = ("--compute", "bfloat16", "--samples", 4, "--tokens", 32, "--test-samples", 4, "--micro-batch", 2, "--gradient-samples", 2)
    return (model, "--data", model.with_suffix(".txt"), *sizes, "--menu", MENU, "--target", "modicum")


@pytest.fixture(scope="session")
def home(server, tmp_path_factory):
    """Make a folder for one command."""
    return lambda *words: Home(tmp_path_factory.mktemp("home") / "home", server, words)


@pytest.fixture(scope="session")
def known_rows(model):
    """Files beside the model: facts, rows to forget and rows to retain."""
    rows = {
        "facts": [{"prompt": f"class Zor{n}(", "target": "Thread):", "subject": f"Zor{n}"} for n in range(3)],
        "gone": [{"text": f"secret number {n} is here"} for n in range(4)],
        "stay": [{"prompt": f"line {n}", "completion": " goes on"} for n in range(6)],
    }
    for name, some in rows.items():
        model.with_name(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    text = model.with_suffix(".txt").read_text(encoding="utf-8")
    texts = {"one": text[:6000], "two": text[6000:12_000]}
    for name, some in texts.items():
        model.with_name(f"{name}.txt").write_text(some, encoding="utf-8")
    return {name: model.with_name(f"{name}.jsonl") for name in rows} | {name: model.with_name(f"{name}.txt") for name in texts}


@pytest.fixture(scope="session")
def whole(home, small, known_rows):
    """By a command's name: its words, where it wrote uninterrupted, its moments, and how often it read weights."""
    words = {
        "budget": ("fit", *small, "--bpw", "6", "--search-time", "0"),
        "coded": ("fit", *small, "--method", "nearest bits=4"),
        "method": ("fit", *small, "--method", "ziplm keep=0.75 | gptq bits=3 | eora rank=2"),
        "measure": ("measure", *small),
        "adapt": ("adapt", small[0], *small[1:3], *ADAPTING),
        "merge": ("merge", small[0], small[0], "--method", "ties", "--no-verify"),
        "train": ("train", small[0], *small[1:3], *ADAPTING[2:], "--method", "set", "--params", "80%"),
        "edit": ("edit", small[0], "--facts", known_rows["facts"], *small[1:3], *EDITING, "--method", "ultraedit rounds=2"),
        "learn": ("learn", small[0], known_rows["one"], known_rows["two"], "--method", "clr steps=2", *LEARNING),
        "forget": (
            "forget", small[0], "--forget", known_rows["gone"], "--retain", known_rows["stay"], "--tokens", 32,
            "--method", "ascent steps=2", "--no-relapse",
        ),
    }  # fmt: skip
    # Those that begin with what another command wrote.
    later = {
        "from": ("measure", lambda out: ("fit", "--from", out, "--bpw", "5")),
        "apply": ("adapt", lambda out: ("apply", small[0], out)),
        "revert": ("apply", lambda out: ("revert", out)),
        "heal": ("method", lambda out: ("heal", out, *small[1:3], "--steps", 4, "--batch", 2)),
        "delta": ("apply", lambda out: ("delta", out, "--base", small[0])),
        "edit compressed": ("coded", lambda out: ("edit", out, *words["edit"][2:])),
        "apply over": ("edit compressed", lambda out: ("apply", words["edit compressed"][1], out)),
        "revert over": ("apply over", lambda out: ("revert", out)),
    }
    known = {}

    def get(name):
        if name in later:
            before, follow = later[name]
            words[name] = follow(get(before)[1].out)
        if name not in known:
            one = home(*words[name])
            trace = one.trace()
            known[name] = (words[name], one, [line for line in trace if line != "read"], trace.count("read"))
        return known[name]

    return get


@pytest.fixture(scope="session")
def killed(home, whole):
    """Kill a command at a moment in the ``place``-th of ``of`` equal parts of all there are: the same command goes on to the same files."""

    def check(command, place, of):
        words, uninterrupted, moments, _ = whole(command)
        moment = 1 + int((place + random.Random(place).random()) * len(moments) / of)
        one = home(*words)
        assert one.run(kill=moment) == -9
        if not one.out.exists():
            assert one.run() == 0, (moments[moment - 1], one.said)
        assert one.files() == uninterrupted.files(), moments[moment - 1]

    return check
