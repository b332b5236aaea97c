"""Files that claim to be large, read by a process that may not take much memory: python bombs.py TENSORS CONTAINER PLAN."""

import json
import resource
import sys
import time
from pathlib import Path

import modicum
from modicum.core.errors import ModicumError
from modicum.core.plan import Plan
from modicum.core.tensorfile import Shards, TensorFile
from modicum.models.open import open_model
from modicum.models.quiet import hushed
from modicum.receipt import read_receipt

MB = 2**20
ALLOWED, GROWTH, SECONDS = 400 * MB, 120 * MB, 30
FILE = "model.safetensors"


def header(fields, data=b""):
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(shape, end, dtype="F32"):
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


TENSORS = {
    "a header of 2**63 bytes": (2**63).to_bytes(8, "little") + b"{}",
    "a header of 99 MB": (99_000_000).to_bytes(8, "little") + b"{}",
    "a tensor of 4 TB": header(tensor([2**40], 2**42)),
    "a tensor of 2**80 values": header(tensor([2**40, 2**40], 2**60)),
    "strides of 2**80": header(tensor([0, 2**40, 2**40], 0)),
    "a tensor over the end": header(tensor([2**30], 2**32), bytes(64)),
    "deep nesting": header(b"[" * 5_000_000),
    "digits": header(b'{"w": ' + b"9" * 5_000_000 + b"}"),
}
CONFIGS = {
    "num_hidden_layers": 2**31, "hidden_size": 2**40, "vocab_size": 2**50, "intermediate_size": 2**45, "num_labels": 10**9,
    "num_attention_heads": 2**31, "head_dim": 2**40, "layer_types": ["full_attention"] * 200_000,
}  # fmt: skip


def changed(path, change):
    """Bytes of a JSON file, changed."""
    body = json.loads(path.read_text())
    change(body)
    return json.dumps(body).encode()


def unit(body, **changes):
    first = next(iter(body["units"].values()))
    first["form"] |= changes.pop("form", {})
    first |= changes


CONTAINERS = {
    "a stack of 2**60": lambda body: unit(body, stored_shape=[2**30, 2**30], expert=0),
    "a matrix of 2**60": lambda body: unit(body, stored_shape=[2**30, 2**30], form={"shape": [2**30, 2**30]}),
    "a thin matrix": lambda body: unit(body, stored_shape=[2**60, 0], form={"shape": [2**60, 0]}),
    "low rank of nothing": lambda body: unit(body, form={"kind": "low_rank", "shape": [2**30, 2**30]}),
    "bits": lambda body: unit(body, form={"kind": "integer", "bits": 2**62, "group": 2**62}),
    "a small stream": lambda body: unit(body, stored_shape=[2**30, 2**30], form={"kind": "coded", "shape": [2**30, 2**30], "bits": 1e-17}),
    "parts": lambda body: unit(body, form={"kind": "sum", "parts": [{}] * 100_000}),
}


def bombs(tensors, container, plan):
    """(name, file to write, its bytes, reader) of every bomb."""
    for name, raw in TENSORS.items():
        for read in (
            lambda: TensorFile(tensors / FILE),
            lambda: Shards(tensors),
            lambda: open_model(tensors),
            lambda: modicum.load(tensors),
        ):
            yield name, tensors / FILE, raw, read
    for key, value in CONFIGS.items():
        raw = changed(tensors / "config.json", lambda body, key=key, value=value: body.update({key: value}))
        for read in (lambda: open_model(tensors), lambda: modicum.load(tensors)):
            yield f"{key} {value!r:.20}", tensors / "config.json", raw, read
    for name, change in CONTAINERS.items():
        yield name, container / "modicum.json", changed(container / "modicum.json", change), lambda: modicum.load(container)
    yield "a plan of 1 TB", plan / "plan.json", 2**40, lambda: Plan.read(plan / "plan.json")
    yield "a receipt of 1 TB", plan / "receipt.json", 2**40, lambda: read_receipt(plan / "receipt.json")
    yield "a container of 1 TB", container / "modicum.json", 2**40, lambda: modicum.load(container)
    yield "a config of 1 TB", tensors / "config.json", 2**40, lambda: open_model(tensors)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(folders):
    tensors, container, plan = map(Path, folders)
    with hushed():
        open_model(tensors), modicum.load(tensors), modicum.load(container)  # all libraries are there from now on
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ALLOWED, size + ALLOWED))
    for name, path, raw, read in bombs(tensors, container, plan):
        whole, before, began = path.read_bytes(), peak(), time.monotonic()
        path.write_bytes(b"" if isinstance(raw, int) else raw)
        if isinstance(raw, int):
            with path.open("r+b") as file:
                file.truncate(raw)  # a file with a hole: it takes no disk
        try:
            with hushed():
                read()
        except ModicumError:
            pass
        else:
            raise SystemExit(f"{name}: was not refused")
        finally:
            path.write_bytes(whole)
        if peak() - before > GROWTH or time.monotonic() - began > SECONDS:
            raise SystemExit(f"{name}: took {(peak() - before) / MB:.0f} MB, {time.monotonic() - began:.1f} s")
    print("all refused")


if __name__ == "__main__":
    main(sys.argv[1:])
