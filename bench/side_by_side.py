"""Side by side with llm-compressor in its own environment (bench/peer/setup.sh): same weights, tokens, bits, groups, damping, order.

`python -m bench.side_by_side [equal best 160m 160m-fp32 1.1b-4 1.1b]`; all but the first two are random weights, whose time and memory count.
With `ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2` before it the processor is as one without bfloat16 units.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

import modicum
from bench.common import ROOT, SAMPLES, TEST, TOKENS, interval, show
from bench.large import MODELS
from bench.sweep import LARGE, VOCABULARY
from modicum.data.splits import from_text
from modicum.models.located import DEMO
from modicum.models.open import open_model
from modicum.testing import random_checkpoint

PEER = ROOT / ".venv-llmcompressor" / "bin" / "python"
WORK = ROOT / "build" / "peer"
KEPT = ["lm_head", "model.embed_tokens"]
NOTE = "Seconds by the clock of calibrating and solving; llm-compressor computes in the dtype in which it is faster. `python -m bench.side_by_side`."
EQUAL = {
    "gptq 4 bits": ({"method": "gptq", "bits": 4}, "gptq bits=4 symmetric=true clip=1"),
    "gptq 3 bits": ({"method": "gptq", "bits": 3}, "gptq bits=3 symmetric=true clip=1"),
    "gptq 2 bits": ({"method": "gptq", "bits": 2}, "gptq bits=2 symmetric=true clip=1"),
    "sparsegpt 50 %": ({"method": "sparsegpt", "sparsity": 0.5}, "sparsegpt keep=0.5 refit=0 towards=0"),
    "wanda 50 %": ({"method": "wanda", "sparsity": 0.5}, "wanda keep=0.5"),
}
BEST = {
    "4 bits": ({"method": "gptq", "bits": 4, "observer": "mse", "symmetric": False}, "gptq bits=4"),
    "3 bits": ({"method": "gptq", "bits": 3, "observer": "mse", "symmetric": False}, "gptq bits=3"),
    "2 bits": ({"method": "gptq", "bits": 2, "observer": "mse", "symmetric": False}, "gptq bits=2"),
}
# Whether the processor is held to what one without bfloat16 units has; the peer is at its best in float32 there.
PLAIN = os.environ.get("ATEN_CPU_CAPABILITY") == "avx2"
COMMON = {"group": 64, "symmetric": True, "damping": 0.01, "order": "static", "pattern": "0:0", "ignore": ["lm_head"], "batch_size": 8}


# Random weights of these shapes and kinds, how many sequences they are calibrated on, and bounds on memory, of which none is one; 1.1b-4 has four
# of the 22 blocks, of which each costs the same, and ours once more on the sequences, and sweeps, with which it is as good as its peer on all.
WIDE = MODELS["1.1b"][0]
SIZES = {
    "160m": (LARGE, "bfloat16", 64, ("", "1.4GB")),
    "160m-fp32": (LARGE, "float32", 64, ("",)),
    "1.1b-4": (WIDE | {"num_hidden_layers": 4}, "bfloat16", 32, ("", "2.45GB")),
    "1.1b": (WIDE, "bfloat16", 32, ("", "2.45GB")),
}
FEWER, QUICK = 2, (3 / 8, " sweeps=1")
OURS = """
import json, sys
import modicum
from safetensors.torch import load_file

model, tokens, out, method, ram = sys.argv[1:]
rows = load_file(tokens)["input_ids"]
data = [{"input_ids": part} for part in rows.chunk(26)]
keep = ["lm_head", "model.embed_tokens"]
wanted = {"data": data, "method": method, "target": "modicum", "keep": keep, "ram": ram or None}
receipt = modicum.fit(model, out=out, overwrite=True, allow_broken=True, **wanted).receipt
print(json.dumps({"stages": receipt["stages"], "tokens": receipt["data"]["calibration_tokens"]}))
"""


def main(parts: list[str] | None = None) -> None:
    parts = parts or ["equal", "best", "160m", "160m-fp32", "1.1b-4"]
    if not PEER.exists():
        print("side by side: bench/peer/setup.sh has not been run, skipped")
        return
    WORK.mkdir(parents=True, exist_ok=True)
    data = from_text(None, open_model("demo").tokenizer, samples=SAMPLES, tokens=TOKENS)
    save_file({"input_ids": torch.cat([batch["input_ids"] for batch in data.calibration])}, WORK / "tokens.safetensors")  # type: ignore[call-overload,index]
    head = ("setting", "tool", "mean KL [95 %]", "perplexity", "seconds", "extra memory")
    for size in (part for part in parts if part in SIZES):
        sized(size)
    where = " without bfloat16 units" if PLAIN else ""
    whole = {
        "equal": (f"equal{where}: same weights, tokens, bits, groups, damping, order", EQUAL),
        "best": (f"best{where}: each tool at its best", BEST),
    }
    for title, settings in (whole[part] for part in parts if part in whole):
        rows: list[tuple] = []
        for name, (recipe, method) in settings.items():
            rows += [peer(name, {**COMMON, **recipe, "dtype": "float32" if PLAIN else "bfloat16"}), ours(name, method)]
            if "bits" in recipe:
                rows.append(ours(name, method, SAMPLES // FEWER))
            if "bits" in recipe and recipe["bits"] == 4:
                rows.append(ours(name, method + QUICK[1], round(QUICK[0] * SAMPLES)))
            show(f"Side by side {title}", head, rows, NOTE)


def sized(size: str) -> None:
    """Time and extra memory on random weights; by the clock, and what all cores worked together, which other work beside hardly moves."""
    shape, dtype, sequences, bounds = SIZES[size]
    chance = torch.Generator().manual_seed(0)
    # The first 16 of 26 parts calibrate.
    tokens = torch.randint(0, VOCABULARY, (sequences * 26 // 16, TOKENS), generator=chance)
    asked = [(allowed, sequences, "") for allowed in bounds]
    asked += [("", sequences // FEWER, ""), ("", round(QUICK[0] * sequences), QUICK[1])] if size.startswith("1.1b") else []
    with tempfile.TemporaryDirectory() as folder:
        config = transformers.LlamaConfig(**shape, vocab_size=VOCABULARY, max_position_embeddings=1024, tie_word_embeddings=False)
        model = random_checkpoint(Path(folder) / "model", config, getattr(torch, dtype))
        runs: list[tuple[str, float, float, int, int]] = []  # tool, seconds, seconds of one processor, extra bytes, bytes in all
        for allowed, count, more in asked:
            save_file({"input_ids": tokens[: count * 26 // 16]}, WORK / "all.safetensors")
            words = [model, WORK / "all.safetensors", Path(folder) / "ours", EQUAL["gptq 4 bits"][1] + more, allowed]
            done = subprocess.run([sys.executable, "-c", OURS, *map(str, words)], check=True, stdout=subprocess.PIPE, text=True)
            stages = json.loads(done.stdout.splitlines()[-1])["stages"]
            made = stages["assemble"]
            grown = max(made["peak_bytes"] - stages["open"]["peak_bytes"], 0)
            tool = "modicum" + f" --ram {allowed}" * bool(allowed) + f", {count} sequences" * (count < sequences) + more.replace(" ", ", ")
            runs.append((tool, made["seconds"], made["processor_seconds"], grown, made["peak_bytes"]))
        save_file({"input_ids": tokens[:sequences]}, WORK / "some.safetensors")
        theirs = run_peer(model, WORK / "some.safetensors", {**COMMON, **EQUAL["gptq 4 bits"][0], "dtype": dtype}, Path(folder) / "theirs")
    memory = theirs["memory"]
    whole = (theirs["seconds"], theirs["cpu_seconds"], memory["growth_bytes"], memory["before_bytes"] + memory["growth_bytes"])
    rows = [("llm-compressor", f"{whole[0]:.0f}", f"{whole[1]:.0f}", f"{whole[2] / 1e6:.0f} MB", f"{whole[3] / 1e6:.0f} MB")]
    for tool, *found in runs:
        shares = [f"{mine / its:.2f}" for mine, its in zip(found, whole)]
        seconds = [f"{value:.0f} ({share})" for value, share in zip(found[:2], shares)]
        rows.append((tool, *seconds, *(f"{value / 1e6:.0f} MB ({share})" for value, share in zip(found[2:], shares[2:]))))
    note = f"{sequences} sequences of {TOKENS} tokens, gptq 4 bits, group 64, {dtype} weights. Extra is the peak above that of opening the model: "
    note += "modicum's weights are read as they are needed and count as extra, the other's are there before. In brackets modicum's share."
    note += f" `python -m bench.side_by_side {size}`, {torch.get_num_threads()} threads."
    head = ("tool", "seconds", "seconds of one processor", "extra memory", "memory in all")
    show(f"Side by side {size}: random weights", head, rows, note)


def run_peer(model: Path, tokens: Path, recipe: dict, out: Path) -> dict:
    """What the peer's run says of itself."""
    shutil.rmtree(out, ignore_errors=True)
    (WORK / "recipe.json").write_text(json.dumps(recipe))
    command = [
        PEER,
        ROOT / "bench/peer/llmcompressor_run.py",
        "--model",
        model,
        "--tokens",
        tokens,
        "--recipe",
        WORK / "recipe.json",
        "--out",
        out,
    ]
    subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)
    return json.loads((out / "run.json").read_text())


def peer(name: str, recipe: dict) -> tuple:
    out = WORK / "out"
    run = run_peer(DEMO, WORK / "tokens.safetensors", recipe, out)
    quality = modicum.evaluate(out, reference="demo", samples=TEST, tokens=TOKENS)
    return name, "llm-compressor", *judged(quality), f"{run['seconds']:.1f}", f"{run['memory']['growth_bytes'] / 1e6:.0f} MB"


def ours(name: str, method: str, samples: int = SAMPLES) -> tuple:
    """In a process of its own, as the peer is: memory that was used before counts for nobody."""
    out = WORK / "ours"
    kept = [word for pattern in KEPT for word in ("--keep", pattern)]
    command = [sys.executable, "-m", "modicum", "fit", "demo", "--method", method, "--target", "modicum", "--samples", str(samples), *kept]
    done = subprocess.run([*command, "--out", str(out), "--overwrite", "--json"], check=True, capture_output=True, text=True)
    stages = json.loads(done.stdout)["stages"]
    quality = modicum.evaluate(out, reference="demo", samples=TEST, tokens=TOKENS)
    grown = max(stages["assemble"]["peak_bytes"] - stages["open"]["peak_bytes"], 0)
    tool = "modicum" + f", {samples} sequences" * (samples < SAMPLES) + QUICK[1].replace(" ", ", ") * method.endswith(QUICK[1])
    return name, tool, *judged(quality), f"{stages['assemble']['seconds']:.1f}", f"{grown / 1e6:.0f} MB"


def judged(quality: dict) -> tuple[str, str]:
    found = quality.get("divergence") or quality["quality"]
    return interval(found), f"{found['perplexity']:.3f}"


if __name__ == "__main__":
    Path(WORK).mkdir(parents=True, exist_ok=True)
    main(sys.argv[1:])
