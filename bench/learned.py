"""Beside auto-round: learned rounding at 2 and 3 bits, its light and its default recipe, on the demo, same tokens, bits and groups.

python -m bench.learned [BITS:UPDATES[:BLOCKS] ...]    # MODICUM_AUTOROUND: a folder that `pip install --target` filled with auto-round

Linears of the first BLOCKS, or all blocks, symmetric, groups of 64, beside the same option of ours. What is done is kept in build/bench/learned.
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
GROUP, BLOCKS = 64, 8


def main(words: Sequence[str] = ("2:50", "2:200:2")) -> None:
    if not PEER:
        print("learned: MODICUM_AUTOROUND names no folder, skipped")
        return
    HOME.mkdir(parents=True, exist_ok=True)
    runs = [tuple(map(int, word.split(":"))) for word in words]
    rows = []
    for bits, blocks in sorted({(bits, more[0] if more else 0) for bits, _, *more in runs}):
        wanted = [count for other, count, *more in runs if (other, more[0] if more else 0) == (bits, blocks)]
        rows += [_row(bits, blocks, f"auto-round, {count} updates a block", theirs(bits, count, blocks)) for count in wanted]
        rows.append(_row(bits, blocks, "modicum, gptq", ours(bits, blocks)))
    show(
        "Learned rounding: the demo, beside auto-round",
        ("bits", "blocks", "tool", "mean KL [95 %]", "perplexity", "processor seconds", "extra memory, MB"),
        rows,
        f"{SAMPLES} × {TOKENS} calibration tokens, {TEST} test sequences, one thread, symmetric codes in groups of {GROUP}. Seconds and "
        "memory are those of quantizing alone, memory above what was resident before it. `MODICUM_AUTOROUND=FOLDER python -m bench.learned`.",
    )


def theirs(bits: int, updates: int, blocks: int = 0) -> dict[str, Any]:
    """What auto-round loses, and what it takes."""
    out = HOME / f"autoround-{bits}-{updates}-{blocks or 'all'}"
    if not (out / "run.json").exists():
        tokens, recipe = HOME / "tokens.safetensors", HOME / "recipe.json"
        data = from_text(None, open_model("demo").tokenizer, samples=SAMPLES, tokens=TOKENS)
        save_file({"input_ids": torch.cat([batch["input_ids"] for batch in data.calibration])}, tokens)  # type: ignore[call-overload,index]
        recipe.write_text(json.dumps({"bits": bits, "group": GROUP, "iters": updates, "blocks": blocks}))
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


def ours(bits: int, blocks: int = 0) -> dict[str, Any]:
    """The same by one option of ours."""
    file = HOME / f"gptq-{bits}-{blocks or 'all'}.json"
    if not file.exists():
        kept = [word for block in range(blocks, BLOCKS if blocks else 0) for word in ("--keep", f"model.layers.{block}.*")]
        words = [
            "--method", f"gptq bits={bits} group={GROUP} symmetric=true", "--keep", "lm_head", *kept, "--target", "transformers",
            "--samples", str(SAMPLES), "--test-samples", str(TEST), "--allow-broken", "--overwrite", "--json",
        ]  # fmt: skip
        done = run(
            [sys.executable, "-m", "modicum", "fit", "demo", *words, "--out", str(file.with_suffix(".out"))],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        file.write_text(done.stdout)
    receipt = json.loads(file.read_text())
    stages = receipt["stages"]
    made = stages["assemble"]
    before = stages["open"]["peak_bytes"]
    return {"quality": receipt["quality"], "processor": made["processor_seconds"], "memory": made["peak_bytes"], "before": before}


def _row(bits: int, blocks: int, tool: str, said: dict[str, Any]) -> tuple[str, ...]:
    grown = max(said["memory"] - said["before"], 0)
    lost = interval(said["quality"]), f"{said['quality']['perplexity']:.3f}"
    return str(bits), str(blocks or "all"), tool, *lost, f"{said['processor']:.0f}", f"{grown / 1e6:.0f}"


if __name__ == "__main__":
    main(sys.argv[1:] or ("2:50", "2:200:2"))
