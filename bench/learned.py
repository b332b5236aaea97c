"""Beside auto-round: learned rounding at 2 and 3 bits, its light and its default recipe, on the demo, same tokens, bits and groups.

python -m bench.learned [BITS:UPDATES ...]    # MODICUM_AUTOROUND: a folder that `pip install --target` filled with auto-round

Blocks' linears alone, symmetric, groups of 64. Ours stands in each table twice: the same option everywhere, and what `fit` chooses at the bytes
of that option. What is done is kept in build/bench/learned.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from subprocess import run
from typing import Any

import torch
from safetensors.torch import save_file

import modicum
from bench.common import ROOT, SAMPLES, TEST, TOKENS, interval, show
from modicum.data.splits import from_text
from modicum.models.located import DEMO
from modicum.models.open import open_model

HOME, PEER = ROOT / "build" / "bench" / "learned", os.environ.get("MODICUM_AUTOROUND", "")
GROUP = 64


def main(words: Sequence[str] = ("2:50", "2:200", "3:50", "3:200")) -> None:
    if not PEER:
        print("learned: MODICUM_AUTOROUND names no folder, skipped")
        return
    HOME.mkdir(parents=True, exist_ok=True)
    rows = []
    for bits in sorted({word.partition(":")[0] for word in words}):
        updates = [int(word.partition(":")[2]) for word in words if word.startswith(f"{bits}:")]
        rows += [_row(bits, f"auto-round, {count} updates a block", theirs(int(bits), count)) for count in updates]
        same = ours(int(bits))
        rows += [_row(bits, "modicum, gptq", same), _row(bits, "modicum, chosen at its bytes", chosen(same["bytes"], bits))]
    show(
        "Learned rounding: the demo, beside auto-round",
        ("bits", "tool", "mean KL [95 %]", "bytes", "processor seconds", "most memory, MB"),
        rows,
        f"{SAMPLES} × {TOKENS} calibration tokens, {TEST} test sequences, one thread. Seconds and memory are those of quantizing alone; bytes of "
        "auto-round's codes are those of ours. `MODICUM_AUTOROUND=FOLDER python -m bench.learned`.",
    )


def theirs(bits: int, updates: int) -> dict[str, Any]:
    """What auto-round loses, and what it takes."""
    out = HOME / f"autoround-{bits}-{updates}"
    if not (out / "run.json").exists():
        tokens, recipe = HOME / "tokens.safetensors", HOME / "recipe.json"
        data = from_text(None, open_model("demo").tokenizer, samples=SAMPLES, tokens=TOKENS)
        save_file({"input_ids": torch.cat([batch["input_ids"] for batch in data.calibration])}, tokens)  # type: ignore[call-overload,index]
        recipe.write_text(json.dumps({"bits": bits, "group": GROUP, "iters": updates}))
        words = [
            sys.executable,
            str(ROOT / "bench/peer/autoround_run.py"),
            "--model",
            DEMO,
            "--tokens",
            tokens,
            "--recipe",
            recipe,
            "--out",
            out,
        ]
        run(list(map(str, words)), check=True, stdout=sys.stderr, env={**os.environ, "PYTHONPATH": PEER, "OMP_NUM_THREADS": "1"})
    said = json.loads((out / "run.json").read_text())
    if "quality" not in said:
        said["quality"] = modicum.evaluate(out, reference="demo", samples=TEST, tokens=TOKENS)["quality"]
        (out / "run.json").write_text(json.dumps(said))
    return said


def ours(bits: int) -> dict[str, Any]:
    """The same by one option of ours."""
    return _kept(f"gptq-{bits}", ["--method", f"gptq bits={bits} group={GROUP} symmetric=true", "--keep", "lm_head"])


def chosen(size: int, bits: str) -> dict[str, Any]:
    """What is chosen within so many bytes."""
    return _kept(f"chosen-{bits}", ["--size", f"{size / 1e6:.6f}MB", "--search-time", "20"])


def _kept(name: str, words: Sequence[str]) -> dict[str, Any]:
    file = HOME / f"{name}.json"
    if not file.exists():
        shared = [
            "--target",
            "transformers",
            "--samples",
            str(SAMPLES),
            "--test-samples",
            str(TEST),
            "--allow-broken",
            "--overwrite",
            "--json",
        ]
        done = run(
            [sys.executable, "-m", "modicum", "fit", "demo", *words, *shared, "--out", str(file.with_suffix(".out"))],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        file.write_text(done.stdout)
    receipt = json.loads(file.read_text())
    stage = receipt["stages"]["assemble"]
    made = {"processor": stage["processor_seconds"], "memory": stage["peak_bytes"]}
    return {"quality": receipt["quality"], "bytes": receipt["bytes"]["actual"], **made}


def _row(bits: str, tool: str, said: dict[str, Any]) -> tuple[str, ...]:
    return (
        bits, tool, interval(said["quality"]), str(said.get("bytes", "")), f"{said['processor']:.0f}", f"{said['memory'] / 1e6:.0f}",
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:] or ("2:50", "2:200", "3:50", "3:200"))
