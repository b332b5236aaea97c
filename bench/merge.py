"""Merging 2 GB of shards: bytes read and written per second against a copy, and time and memory against mergekit, warm, one run each.

mergekit runs in an environment of its own (``python -m venv .venv-mergekit``, ``pip install torch==2.13.0`` and ``mergekit`` in it); where it is
absent it is left out and the table says so. Hashing and verification are timed apart. ``python -m bench.merge GB`` takes another size.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from bench.common import ROOT, show
from modicum.merging.engine import keep_freed
from modicum.numerics.threads import single_threaded

PEER = ROOT / ".venv-mergekit" / "bin" / "python"
WIDTH, INNER, VOCABULARY = 1024, 2816, 8192
OURS = {
    "linear": ("average", 2), "task arithmetic": ("task_arithmetic", 3), "ties by tensor": ("ties density=0.2 trim=tensor", 3),
    "ties over the model": ("ties density=0.2 trim=model", 3), "dare": ("dare density=0.2", 3), "della": ("della density=0.2", 3),
    "pcb": ("pcb", 3),
}  # fmt: skip
THEIRS = {"linear": "linear", "task arithmetic": "task_arithmetic", "ties by tensor": "ties", "dare": "dare_linear", "della": "della"}
SLOW = ("ties by tensor", "della")  # of mergekit: on one thread alone, so that all takes minutes

RUN = """
import json, sys, threading, time
import psutil
who, base, one, two, out, method = sys.argv[1:7]
process, peak, stop = psutil.Process(), [0], threading.Event()
if who == "modicum":
    import torch
    from modicum.merging.merge import merge
    import modicum.models.open, transformers
else:
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions
held = lambda: (lambda m: m.rss - m.shared)(process.memory_info())
before = held()
def watch():
    while not stop.wait(0.005):
        peak[0] = max(peak[0], held())
threading.Thread(target=watch, daemon=True).start()
start, begun = time.perf_counter(), time.process_time()
if who == "modicum":
    method, verify = method.removesuffix(" verify"), method.endswith(" verify")
    found = merge(base, [one, two], out, method=method, verify=verify).receipt["stages"]
    seconds, worked = found["merging"]["seconds"], found["merging"]["processor_seconds"]
    stages = {name: stage["seconds"] for name, stage in found.items()}
else:
    each = {"weight": 0.5} | ({"density": 0.2} if method in ("ties", "dare_linear", "della") else {})
    body = {"merge_method": method, "dtype": "bfloat16", "models": [{"model": model, "parameters": each} for model in (one, two)]}
    if method == "della":
        body["parameters"] = {"epsilon": 0.1}
    if method != "linear":
        body["base_model"] = base
    run_merge(MergeConfiguration.model_validate(body), out, MergeOptions(copy_tokenizer=False, allow_crimes=True, quiet=True, write_model_card=False))
    seconds, worked = time.perf_counter() - start, time.process_time() - begun
stop.set()
print(json.dumps((stages if who == "modicum" else {}) | {"seconds": seconds, "worked": worked, "extra": peak[0] - before}))
"""


def made(folder: Path, gigabytes: float) -> list[Path]:
    """Three models of one layout, together of so many bytes, in shards."""
    from transformers import LlamaConfig, LlamaForCausalLM

    layer = 2 * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER)
    layers = max(1, round((gigabytes * 1e9 / 3 - 4 * WIDTH * VOCABULARY) / layer))
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=layers, num_attention_heads=8, vocab_size=VOCABULARY, dtype="bfloat16"
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    paths = []
    for place, name in enumerate(("base", "one", "two")):
        for parameter in model.parameters() if place else ():
            parameter.data += 0.002 * torch.randn(parameter.shape).to(torch.bfloat16)
        model.save_pretrained(folder / name, max_shard_size="200MB")
        paths.append(folder / name)
    return paths


def main(gigabytes: float = 2.0) -> None:
    """Time all, each once, on files that were read before: on one thread, and on two."""
    (ROOT / "out").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "out") as place:
        paths = made(Path(place), gigabytes)
        size = sum(file.stat().st_size for file in paths[0].glob("*.safetensors"))
        copies = [copied(paths[0], Path(place) / "copy") for _ in range(3)]
        copy = tuple(min(each) for each in zip(*copies))
        rows = [_row("", "cp --reflink=never", 1, dict(zip(("seconds", "worked"), copy)), 1, size, copy)]
        for name, passes, reads in (("linear", linear_passes, (1, 2)), ("ties by tensor", ties_passes, (0, 1, 2) * 2)):
            found = min((bare(paths, Path(place) / "bare", passes, reads) for _ in range(2)), key=lambda pair: pair[1])
            rows.append(_row(name, "bare loop", 1, dict(zip(("seconds", "worked"), found)), len(reads), size, copy))
        for threads in (1, 2):
            linear = None
            for name, (method, reads) in OURS.items():
                found = run(sys.executable, "modicum", paths, Path(place) / "out", method, threads)
                linear = linear or found
                rows.append(_row(name, "modicum", threads, found, reads, size, copy, linear))
                if name in THEIRS and PEER.exists() and (threads == 1 or name not in SLOW):
                    peer = run(str(PEER), "mergekit", paths, Path(place) / "out", THEIRS[name], threads)
                    told = f"mergekit, {peer['seconds'] / found['seconds']:.1f} times ours"
                    rows.append(_row(name, told, threads, peer, reads, size, copy, linear))
        apart = run(sys.executable, "modicum", paths, Path(place) / "out", "average verify", 1)
    head = (
        "merge",
        "tool",
        "threads",
        "seconds",
        "of processors",
        "read and written",
        "of a copy's rate",
        "of our linear",
        "memory above import",
    )
    note = (
        f"{3 * size / 1e9:.1f} GB in bfloat16, a base and two models in shards, warm. Apart from that: hashing of the three and of the result "
        f"{apart['hashing']:.2f} s, verification of the linear one {apart['verifying']:.2f} s, waiting for the disk {apart['syncing']:.2f} s. "
        "Rates and ratios are by the clock, in brackets by seconds of processors, which others at work on the machine move less. The aims: "
        "linear at least 0.8 of a copy, TIES by tensor at most 1.5 of linear, a fifth of mergekit's time and a quarter of its memory."
        + ("" if PEER.exists() else " mergekit was not here.")
    )
    show("Merging", head, rows, note)


def _row(
    name: str,
    tool: str,
    threads: int,
    found: dict[str, float],
    reads: int,
    size: int,
    copy: Sequence[float],
    linear: dict[str, float] | None = None,
) -> tuple[str, ...]:
    """Figures of one run, which read so many models and wrote one."""
    share = (reads + 1) / 2  # of what a copy reads and writes
    both = lambda clock, worked: f"{clock:.2f} ({worked:.2f})"
    return (
        name, tool, str(threads), f"{found['seconds']:.2f} s", f"{found['worked']:.2f} s",
        f"{(reads + 1) * size / found['seconds'] / 1e9:.2f} GB/s", both(share * copy[0] / found["seconds"], share * copy[1] / found["worked"]),
        "" if linear is None else both(found["seconds"] / linear["seconds"], found["worked"] / linear["worked"]),
        f"{found['extra'] / 1e6:.0f} MB" if "extra" in found else "",
    )  # fmt: skip


def copied(source: Path, place: Path) -> tuple[float, float]:
    """Seconds of a copy of a model's shards, by the clock and of a processor."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    files = list(map(str, source.glob("*.safetensors")))
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["cp", "--reflink=never", *files, str(place)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def linear_passes(base: torch.Tensor, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """The one pass that the mean of two takes."""
    return torch.lerp(one, two, 0.5)


def ties_passes(base: torch.Tensor, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """Those of TIES on two models: sizes counted above and between two bounds, then trimming, the vote, and the mean of what agrees."""
    base, models = base.float(), [one.float(), two.float()]
    for each in models:
        size = (each - base).abs_().numpy()
        np.count_nonzero(size > 0.003)
        np.flatnonzero((size >= 0.0029) ^ (size > 0.003))
    base, models = base.clone(), [each.clone() for each in models]  # they are read and widened once more
    kept = [torch.nn.functional.hardshrink(each - base, 0.0029) for each in models]
    sign = (kept[0] + kept[1]).sign_()
    for each in kept:
        torch.gt(each.mul_(sign), 0, out=each)
    made = (models[0] * kept[0]).addcmul_(models[1], kept[1])
    count = kept[0].add_(kept[1])
    nobody = torch.eq(count, 0, out=sign)
    return made.addcmul_(nobody, base).div_(count.add_(nobody))


def bare(paths: list[Path], out: Path, passes: Callable[..., torch.Tensor], reads: Sequence[int]) -> tuple[float, float]:
    """Seconds, by the clock and of a processor, of a method's passes alone over pieces of files that are read in this order: a floor."""
    keep_freed()
    with single_threaded():
        start, before, entries = time.perf_counter(), time.process_time(), 1 << 18 if len(reads) == 2 else 1 << 17
        for files in zip(*(sorted(path.glob("*.safetensors")) for path in paths)):
            handles = [os.open(file, os.O_RDONLY) for file in files]
            size = os.fstat(handles[0]).st_size
            made = os.open(out, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
            os.posix_fallocate(made, 0, size)
            kept = [torch.zeros(entries, dtype=torch.bfloat16) for _ in handles]
            views = [memoryview(each.view(torch.uint8).numpy()) for each in kept]
            for place in range(0, size - 2 * entries, 2 * entries):
                for file in reads:
                    os.preadv(handles[file], [views[file]], place)
                stored = passes(*kept).to(torch.bfloat16)
                os.pwrite(made, memoryview(stored.view(torch.uint8).numpy()), place)
            for handle in (*handles, made):
                os.close(handle)
            out.unlink()
        return time.perf_counter() - start, time.process_time() - before


def run(interpreter: str, who: str, paths: list[Path], out: Path, method: str, threads: int) -> dict[str, float]:
    """One merge in a process of its own."""
    shutil.rmtree(out, ignore_errors=True)
    words = [interpreter, "-c", RUN, who, *map(str, paths), str(out), method]
    env = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT / "src") if who == "modicum" else ""}
    made = subprocess.run(words, check=True, capture_output=True, text=True, env={**os.environ, **env})
    return json.loads(made.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
