"""Side by side with llm-compressor in its own environment (bench/peer/setup.sh): same weights, tokens, bits, groups, damping, order.

python -m bench.side_by_side
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import modicum
from bench.common import ROOT, SAMPLES, TEST, TOKENS, interval, show
from modicum.data.splits import from_text
from modicum.models.open import DEMO, open_model

PEER = ROOT / ".venv-llmcompressor" / "bin" / "python"
WORK = ROOT / "build" / "peer"
KEPT = ["lm_head", "model.embed_tokens"]
EQUAL = {
    "gptq 4 bits": ({"method": "gptq", "bits": 4}, "gptq bits=4 symmetric=true clip=1"),
    "gptq 3 bits": ({"method": "gptq", "bits": 3}, "gptq bits=3 symmetric=true clip=1"),
    "gptq 2 bits": ({"method": "gptq", "bits": 2}, "gptq bits=2 symmetric=true clip=1"),
    "sparsegpt 50 %": ({"method": "sparsegpt", "sparsity": 0.5}, "sparsegpt keep=0.5"),
    "wanda 50 %": ({"method": "wanda", "sparsity": 0.5}, "wanda keep=0.5"),
}
BEST = {
    "4 bits": ({"method": "gptq", "bits": 4, "observer": "mse", "symmetric": False}, "gptq bits=4"),
    "3 bits": ({"method": "gptq", "bits": 3, "observer": "mse", "symmetric": False}, "gptq bits=3"),
    "2 bits": ({"method": "gptq", "bits": 2, "observer": "mse", "symmetric": False}, "gptq bits=2"),
}
COMMON = {"group": 64, "symmetric": True, "damping": 0.01, "order": "static", "pattern": "0:0", "ignore": ["lm_head"], "batch_size": 8}


def main() -> None:
    if not PEER.exists():
        print("side by side: bench/peer/setup.sh has not been run, skipped")
        return
    WORK.mkdir(parents=True, exist_ok=True)
    data = from_text(None, open_model("demo").tokenizer, samples=SAMPLES, tokens=TOKENS)
    save_file({"input_ids": torch.cat([batch["input_ids"] for batch in data.calibration])}, WORK / "tokens.safetensors")  # type: ignore[call-overload,index]
    head = ("setting", "tool", "mean KL [95 %]", "perplexity", "seconds", "extra memory")
    for title, settings in (("equal: same weights, tokens, bits, groups, damping, order", EQUAL), ("best: each tool at its best", BEST)):
        rows: list[tuple] = []
        for name, (recipe, method) in settings.items():
            rows += [peer(name, {**COMMON, **recipe, "dtype": "bfloat16"}), ours(name, method)]
            show(f"Side by side {title}", head, rows)


def peer(name: str, recipe: dict) -> tuple:
    out = WORK / "out"
    shutil.rmtree(out, ignore_errors=True)
    (WORK / "recipe.json").write_text(json.dumps(recipe))
    command = [PEER, ROOT / "bench/peer/llmcompressor_run.py", "--model", DEMO, "--tokens", WORK / "tokens.safetensors"]
    subprocess.run([*map(str, command), "--recipe", str(WORK / "recipe.json"), "--out", str(out)], check=True, stdout=sys.stderr)
    run = json.loads((out / "run.json").read_text())
    quality = modicum.evaluate(out, reference="demo", samples=TEST, tokens=TOKENS)
    return name, "llm-compressor", *judged(quality), f"{run['seconds']:.1f}", f"{run['memory']['growth_bytes'] / 1e6:.0f} MB"


def ours(name: str, method: str) -> tuple:
    """In a process of its own, as the peer is: memory that was used before counts for nobody."""
    out = WORK / "ours"
    kept = [word for pattern in KEPT for word in ("--keep", pattern)]
    command = [sys.executable, "-m", "modicum", "fit", "demo", "--method", method, "--target", "modicum", "--samples", str(SAMPLES), *kept]
    done = subprocess.run([*command, "--out", str(out), "--overwrite", "--json"], check=True, capture_output=True, text=True)
    stages = json.loads(done.stdout)["stages"]
    quality = modicum.evaluate(out, reference="demo", samples=TEST, tokens=TOKENS)
    grown = max(stages["assemble"]["peak_bytes"] - stages["open"]["peak_bytes"], 0)
    return name, "modicum", *judged(quality), f"{stages['assemble']['seconds']:.1f}", f"{grown / 1e6:.0f} MB"


def judged(quality: dict) -> tuple[str, str]:
    found = quality.get("divergence") or quality["quality"]
    return interval(found), f"{found['perplexity']:.3f}"


if __name__ == "__main__":
    Path(WORK).mkdir(parents=True, exist_ok=True)
    main()
