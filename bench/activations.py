"""Codes times codes, in eight bits and in four, beside llm-compressor's recipes: same weights, tokens, layers, damping; inputs scaled by token.

`python -m bench.activations`; the peer runs in an environment of its own (bench/peer/setup.sh). Both directories are loaded by Transformers, whose
compressed-tensors rounds the inputs, and judged on one held-out text. What is done is kept in build/peer/activations.json.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

import modicum
from bench.common import ROOT, SAMPLES, TEST, TOKENS, interval, show
from bench.side_by_side import PEER, WORK
from modicum.data.splits import from_text
from modicum.models.located import DEMO
from modicum.models.open import open_model

# By row: the peer's recipe, and our method, format of inputs and smoothing.
GPTQ, GPTQ4 = "gptq bits=8 group=0", "gptq bits=4 group=128 symmetric=true"
ROWS: dict[str, tuple[dict | None, str, str, float | None]] = {
    "int8, gptq": ({"format": "int8"}, GPTQ, "int8", None),
    "int8, smoothed 0.8, gptq": ({"format": "int8", "smooth": 0.8}, GPTQ, "int8", 0.8),
    "fp8": ({"format": "fp8"}, "float8", "fp8", None),
    "int4, groups of 128, gptq": ({"format": "int4"}, GPTQ4, "int4", None),
    "int4, smoothed 0.8, gptq": ({"format": "int4", "smooth": 0.8}, GPTQ4, "int4", 0.8),
    "mxfp4": ({"format": "mxfp4"}, "float4 format=mxfp4", "mxfp4", None),
    "mxfp4, columns in turn": (None, "zeroquant_fp format=mxfp4", "mxfp4", None),
}
KEPT = WORK / "activations.json"


def main() -> None:
    if not PEER.exists():
        print("activations: bench/peer/setup.sh has not been run, skipped")
        return
    WORK.mkdir(parents=True, exist_ok=True)
    data = from_text(None, open_model("demo").tokenizer, samples=SAMPLES, tokens=TOKENS)
    save_file({"input_ids": torch.cat([batch["input_ids"] for batch in data.calibration])}, WORK / "tokens.safetensors")  # type: ignore[call-overload,index]
    rows: list[tuple] = []
    for name, (recipe, method, format, smooth) in ROWS.items():
        if recipe:
            rows.append((name, "llm-compressor", *kept(f"{name}, peer", partial(peer, recipe))[:2]))
        rows.append((name, "modicum", *kept(f"{name}, ours", partial(ours, method, format, smooth))[:2]))
    note = f"{SAMPLES} sequences of {TOKENS} tokens to calibrate, {TEST} to judge; head and embedding as they were. `python -m bench.activations`."
    show(
        "Activations: weights and inputs in eight and four bits, demo model",
        ("setting", "tool", "mean KL [95 %]", "perplexity"),
        rows,
        note,
    )


def kept(name: str, work: Callable[[], tuple[str, str, str]]) -> Sequence[str]:
    """What a side came to, done once."""
    known = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if name not in known:
        known[name] = work()
        KEPT.write_text(json.dumps(known))
    return known[name]


def peer(recipe: dict) -> tuple[str, str, str]:
    """What is lost by the peer's directory, and the seconds it took."""
    out = WORK / "w8a8"
    shutil.rmtree(out, ignore_errors=True)
    (WORK / "recipe.json").write_text(json.dumps(recipe))
    words = ["--model", DEMO, "--tokens", WORK / "tokens.safetensors", "--recipe", WORK / "recipe.json", "--out", out]
    subprocess.run(list(map(str, [PEER, ROOT / "bench/peer/llmcompressor_w8a8.py", *words])), check=True, stdout=sys.stderr)
    return *judged(out), f"{json.loads((out / 'run.json').read_text())['seconds']:.1f}"


def ours(method: str, format: str, smooth: float | None) -> tuple[str, str, str]:
    """The same by a fit of one method."""
    out = WORK / "ours"
    words = [
        "--method",
        method,
        "--activations",
        format,
        "--target",
        "transformers",
        "--samples",
        str(SAMPLES),
        "--keep",
        "lm_head",
        "--test-samples",
        "2",
    ]
    words += [] if smooth is None else ["--smooth", str(smooth)]
    command = [sys.executable, "-m", "modicum", "fit", "demo", *words, "--out", str(out), "--overwrite", "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return *judged(out), f"{json.loads(done.stdout)['stages']['assemble']['seconds']:.1f}"


def judged(out: Path) -> tuple[str, str]:
    """Divergence and perplexity of a directory as Transformers loads it."""
    quality = modicum.evaluate(out, reference="demo", samples=TEST, tokens=TOKENS)["quality"]
    return interval(quality), f"{quality['perplexity']:.3f}"


if __name__ == "__main__":
    main()
