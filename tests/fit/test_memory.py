"""Memory has a bound that depth does not move, and a limit is kept or refused before any work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

import modicum
from modicum.core.errors import BudgetError, ModelError
from modicum.core.tensorfile import TensorFile
from modicum.testing import random_checkpoint

# So deep that a model held whole stands out of what allocators keep, 20 MB from run to run.
WIDTH, INNER, DEEP = 384, 1024, 20
# It takes what solves take of memory, in little time.
METHOD = "gptq bits=4 group=64 sweeps=0 order=none clip=1"
BLOCK = 2 * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER)
# What every run here is told: the least that a refusal named, and no more.
CHILD = """
import json, re, resource, sys
import torch
import modicum

directory, out, words = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
chance = torch.Generator().manual_seed(0)
data = [{"input_ids": torch.randint(0, 256, (2, 64), generator=chance)} for _ in range(6)]
if words.pop("bounded", False):
    import modicum.fit.run, modicum.receipt, transformers, transformers.models.llama.modeling_llama
    now = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (now + words.pop("room"),) * 2)
if words.pop("whole", False):
    transformers.AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    sys.exit(0)
if "ram" not in words:
    try:
        modicum.fit(directory, data=data, ram=1, dry_run=False, out=out, **words)
    except modicum.ModicumError as error:
        number, unit = re.search(r"must be at least ([\\d.]+) (MB|GB)", str(error)).groups()
        words["ram"] = int(float(number) * {"MB": 1e6, "GB": 1e9}[unit]) + 1_000_000
receipt = modicum.fit(directory, data=data, out=out, overwrite=True, **words).receipt
print(json.dumps({"ram": words["ram"], "peaks": {name: stage["peak_bytes"] for name, stage in receipt["stages"].items()}, "events": receipt["events"],
                  "verification": receipt["verification"]}))
"""


def checkpoint(directory, layers, dtype=torch.bfloat16):
    config = transformers.LlamaConfig(
        hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=8, vocab_size=256,
        tie_word_embeddings=False, max_position_embeddings=128,
    )  # fmt: skip
    return random_checkpoint(directory, config, dtype)


def in_child(*words):
    done = subprocess.run([sys.executable, "-c", CHILD, *map(str, words)], capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}, done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run at each depth, in a process of its own, within the least memory it asked for."""
    found = {}
    for layers in (2, DEEP):
        place = tmp_path_factory.mktemp(f"layers{layers}")
        code, told, errors = in_child(
            checkpoint(place / "model", layers), place / "out", json.dumps({"method": METHOD, "target": "modicum"})
        )
        assert code == 0, errors
        found[layers] = told | {"place": place}
    return found


def test_the_peak_grows_with_the_widest_block_and_not_with_depth(runs):
    """Verification, and what it leaves behind, apart: the target's loader holds the model whole if the limit allows."""
    peaks = [told["peaks"]["assemble"] for told in runs.values()]
    assert max(peaks) - min(peaks) < (DEEP - 2) * BLOCK / 2


def test_a_limit_is_kept(runs):
    for told in runs.values():
        assert max(told["peaks"].values()) <= 1.1 * told["ram"]


@pytest.fixture(scope="module")
def beyond(tmp_path_factory):
    """A model larger than what the system lets the process hold, and a run on it."""
    place = tmp_path_factory.mktemp("beyond")
    model = checkpoint(place / "model", 64, torch.float32)
    room = sum(path.stat().st_size for path in model.glob("*.safetensors")) * 4 // 5
    words = {"bounded": True, "room": room, "method": "nearest bits=4 group=64", "target": "modicum"}
    return words, place, in_child(model, place / "out", json.dumps(words))


@pytest.mark.slow
def test_where_memory_ends_a_streaming_run_goes_through_and_a_whole_model_does_not(beyond):
    words, place, (code, told, errors) = beyond
    assert code == 0, errors
    assert max(told["peaks"].values()) <= 1.1 * told["ram"]
    code, _, errors = in_child(place / "model", place / "whole", json.dumps(words | {"whole": True}))
    assert code != 0 and ("memory" in errors.lower() or "alloc" in errors.lower())


def require_read_back(told, out):
    """Every tensor was compared, and what was not done is told."""
    assert told["verification"]["loader"] == "none: every tensor read back"
    with TensorFile(out / "model.safetensors") as file:
        assert told["verification"]["tensors compared"] == len(file.entries)
    (event,) = [event for event in told["events"] if event.startswith("verify: the target's own loader was not run")]
    assert "--ram allows" in event


@pytest.mark.slow
def test_a_model_larger_than_its_limit_is_read_back_tensor_by_tensor(beyond, runs):
    _, place, (_, told, _) = beyond
    require_read_back(told, place / "out")
    assert runs[2]["verification"]["loader"] == "modicum.load"


def test_a_model_that_is_too_large_to_load_is_read_back_tensor_by_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr("modicum.fit.verify.too_large", lambda made: True)
    data = [{"input_ids": torch.randint(0, 256, (1, 8))} for _ in range(3)]
    told = modicum.fit(checkpoint(tmp_path / "model", 1), method="nearest", data=data, ram="8GB", out=tmp_path / "out").receipt
    require_read_back(told, tmp_path / "out")


def test_too_little_is_refused_before_any_work(tmp_path):
    model = checkpoint(tmp_path / "model", 1)
    data = [{"input_ids": torch.randint(0, 256, (1, 8))} for _ in range(3)]
    with pytest.raises(BudgetError, match=r"^--ram: must be at least .* for this model, got 10\.000 MB\.$"):
        modicum.fit(model, method="nearest", data=data, ram="10MB", out=tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_a_tensor_that_is_read_back_otherwise_is_told(tmp_path, monkeypatch):
    """As a disk would that loses what it was given."""
    from modicum.export._family import Layout
    from modicum.fit import verify

    model = checkpoint(tmp_path / "model", 1)
    data = [{"input_ids": torch.randint(0, 256, (1, 8))} for _ in range(3)]
    write = Layout.write

    def written(self, directory: Path, *rest):
        paths = write(self, directory, *rest)
        with paths[-1].open("r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)[0]
            file.seek(-1, 2)
            file.write(bytes([last ^ 1]))
        return paths

    monkeypatch.setattr(Layout, "write", written)
    monkeypatch.setattr(verify, "too_large", lambda made: True)
    with pytest.raises(ModelError, match="must be read back as it was written, differs"):
        modicum.fit(model, method="nearest", data=data, ram="8GB", out=tmp_path / "out")
