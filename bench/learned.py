"""Beside auto-round: learned rounding by its light and its default recipe, at the same tokens, bits and groups.

python -m bench.learned [[SIZE:]BITS:UPDATES[:BLOCKS] ...]    # MODICUM_AUTOROUND: a folder that `pip install --target` filled with auto-round

SIZE: `demo`, or `160m` or `1.1b`, random weights, whose time and memory count. Linears of the first BLOCKS, or all blocks, symmetric, groups of 64,
beside the same option of ours, as it runs by itself and within the least `--ram` that is taken. What is done is kept in build/bench/learned.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import run
from typing import Any

import torch
from safetensors.torch import save_file

import modicum
from bench.common import ROOT, SAMPLES, TEST, TOKENS, interval, show
from bench.large import MODELS
from bench.sweep import LARGE, VOCABULARY
from modicum.data.splits import from_text
from modicum.models.located import DEMO
from modicum.models.open import open_model
from modicum.testing import random_checkpoint

HOME, PEER = ROOT / "build" / "bench" / "learned", os.environ.get("MODICUM_AUTOROUND", "")
GROUP, PARTS, LEAST = 64, 26, "least"
SHAPES = {"160m": LARGE, "1.1b": MODELS["1.1b"][0]}
DEPTH = {"demo": 8, **{size: shape["num_hidden_layers"] for size, shape in SHAPES.items()}}
WORDS = ("2:50",)
# One run of ours in a process of its own; what it holds as the forms begin to be made is noted then. 16 of 26 parts of given tokens calibrate.
OURS = """
import json, re, sys
import modicum
from modicum.core.memory import own_memory
from modicum.core.progress import Quiet
from safetensors.torch import load_file

model, tokens, out, wanted = sys.argv[1:]
wanted, before = json.loads(wanted), {}

class Noting(Quiet):
    def start(self, stage, total):
        before.setdefault(stage, own_memory())

if tokens:
    rows = load_file(tokens)["input_ids"]
    wanted["data"] = [{"input_ids": part} for part in rows.chunk(26)]
if wanted.get("ram") == "least":
    wanted["ram"] = 1
for _ in range(4):  # what the process has reserved counts too, and grows with each refusal
    try:
        receipt = modicum.fit(model, out=out, overwrite=True, progress=Noting(), **wanted).receipt
        break
    except modicum.ModicumError as error:
        number, unit = re.search(r"must be at least ([\\d.]+) (MB|GB)", str(error)).groups()
        wanted["ram"] = int(float(number) * {"MB": 1e6, "GB": 1e9}[unit]) - 20_000_000  # what is named leaves room to spare
made = receipt["stages"]["assemble"]
print(json.dumps({"quality": receipt["quality"], "processor": made["processor_seconds"], "memory": made["peak_bytes"],
                  "before": before["assemble"], "ram": wanted.get("ram")}))
"""


def main(words: Sequence[str] = WORDS) -> None:
    if not PEER:
        print("learned: MODICUM_AUTOROUND names no folder, skipped")
        return
    HOME.mkdir(parents=True, exist_ok=True)
    asked: dict[str, list[tuple[int, ...]]] = {}
    for word in words:
        size, *numbers = word.split(":") if word.split(":")[0] in DEPTH else ["demo", *word.split(":")]
        asked.setdefault(size, []).append(tuple(map(int, numbers)))
    for size, runs in asked.items():
        table(size, runs)


def table(size: str, runs: Sequence[tuple[int, ...]]) -> None:
    """Both tools at one size, a row for each run."""
    rows: list[tuple[str, ...]] = []
    for bits, blocks in dict.fromkeys((bits, more[0] if more else 0) for bits, _, *more in runs):
        counts = [count for other, count, *more in runs if (other, more[0] if more else 0) == (bits, blocks)]
        found = [(f"auto-round, {count} updates a block", theirs(size, bits, count, blocks)) for count in counts]
        found += [("modicum, gptq", ours(size, bits, blocks))]
        found += [("modicum, gptq, --micro-batch 2, the least --ram", ours(size, bits, blocks, LEAST))]
        rows += [_row(size, bits, blocks, tool, said) for tool, said in found]
    trained, times = size == "demo", "" if size == "demo" else ", and times the depth over the blocks that were run in brackets"
    show(
        f"Learned rounding{'' if trained else f' {size}'}: {'the demo' if trained else 'random weights'}, beside auto-round",
        ("bits", "blocks", "tool", *(("mean KL [95 %]", "perplexity") if trained else ()), "processor seconds", "extra memory, MB"),
        rows,
        f"{SAMPLES} × {TOKENS} calibration tokens, {f'{TEST} test sequences, ' if trained else ''}one thread, symmetric codes in groups of {GROUP}. "
        f"Seconds are those of quantizing alone{times}; memory is anonymous and shared, at the most above what the process "
        "held as quantizing began: auto-round's whole model is there by then, modicum's weights are read as they are needed. "
        f"`MODICUM_AUTOROUND=FOLDER python -m bench.learned {' '.join(':'.join(map(str, (size, *each))) for each in runs)}`.",
    )


def checkpoint(size: str) -> Path:
    """The model of a size."""
    if size == "demo":
        return Path(DEMO)
    import transformers

    folder = HOME / size
    if not folder.exists():
        config = transformers.LlamaConfig(**SHAPES[size], vocab_size=VOCABULARY, max_position_embeddings=1024, tie_word_embeddings=False)
        random_checkpoint(folder, config, torch.bfloat16)
    return folder


def calibration(size: str, *, whole: bool = False) -> Path:
    """Tokens to calibrate on; of given ones the ``whole`` that ours divides into parts of its own."""
    file = HOME / f"tokens-{size}{'-whole' * whole}.safetensors"
    if not file.exists():
        if size == "demo":
            data = from_text(None, open_model("demo").tokenizer, samples=SAMPLES, tokens=TOKENS)
            ids = torch.cat([batch["input_ids"] for batch in data.calibration])  # type: ignore[call-overload,index]
        else:
            ids = torch.randint(0, VOCABULARY, (SAMPLES * PARTS // 16, TOKENS), generator=torch.Generator().manual_seed(0))
            ids = ids if whole else ids[:SAMPLES]
        save_file({"input_ids": ids.contiguous()}, file)
    return file


def theirs(size: str, bits: int, updates: int, blocks: int) -> dict[str, Any]:
    """What auto-round takes, and what it loses where weights are trained."""
    out = HOME / f"autoround-{size}-{bits}-{updates}-{blocks or 'all'}"
    if not (out / "run.json").exists():
        recipe = HOME / "recipe.json"
        said = {"bits": bits, "group": GROUP, "iters": updates, "blocks": blocks, "save": size == "demo", "tokenizer": str(DEMO)}
        recipe.write_text(json.dumps(said))
        words = ["--model", checkpoint(size), "--tokens", calibration(size), "--recipe", recipe, "--out", out]
        run(
            [sys.executable, str(ROOT / "bench/peer/autoround_run.py"), *map(str, words)],
            check=True, stdout=sys.stderr, env={**os.environ, "PYTHONPATH": PEER, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    told = json.loads((out / "run.json").read_text())
    if size == "demo" and "quality" not in told:
        told["quality"] = modicum.evaluate(out, reference="demo", samples=TEST, tokens=TOKENS)["quality"]
        (out / "run.json").write_text(json.dumps(told))
    return told


def ours(size: str, bits: int, blocks: int, ram: str | None = None) -> dict[str, Any]:
    """The same by one option of ours."""
    file = HOME / f"gptq-{size}-{bits}-{blocks or 'all'}{f'-{ram}' if ram else ''}.json"
    if not file.exists():
        kept = [f"model.layers.{block}.*" for block in range(blocks, DEPTH[size] if blocks else 0)]
        wanted: dict[str, Any] = {
            "method": f"gptq bits={bits} group={GROUP} symmetric=true", "keep": ["lm_head", "model.embed_tokens", *kept], "allow_broken": True,
            "target": "transformers", "ram": ram,
        }  # fmt: skip
        wanted |= {"samples": SAMPLES, "test_samples": TEST, "micro_batch": 2 if ram else 8} if size == "demo" else {}
        tokens = "" if size == "demo" else calibration(size, whole=True)
        words = [checkpoint(size), tokens, file.with_suffix(".out"), json.dumps(wanted)]
        done = run(
            [sys.executable, "-c", OURS, *map(str, words)], check=True, stdout=-1, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        file.write_text(done.stdout.splitlines()[-1])
    return json.loads(file.read_text())


def _row(size: str, bits: int, blocks: int, tool: str, said: dict[str, Any]) -> tuple[str, ...]:
    lost = (interval(said["quality"]), f"{said['quality']['perplexity']:.3f}") if size == "demo" else ()
    whole = f" ({said['processor'] * DEPTH[size] / blocks:.0f})" if blocks else ""
    tool += f" ({said['ram'] / 1e6:.0f} MB)" if said.get("ram") else ""
    grown = max(said["memory"] - said["before"], 0) / 1e6
    return str(bits), str(blocks or "all"), tool, *lost, f"{said['processor']:.0f}{whole}", f"{grown:.0f}"


if __name__ == "__main__":
    main(sys.argv[1:] or WORDS)
