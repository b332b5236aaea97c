"""Several processes at one run: ranks that share the micro-batches of a sweep, and workers that judge candidates side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bench.common import TOKENS, show
from bench.sweep import LARGE, VOCABULARY
from modicum.testing import random_checkpoint

SEQUENCES, ROUNDS = 32, 3
# Processes, and threads of each: one core, two cores in one process, and one core for each of two.
ARRANGEMENTS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 ranks, 1 thread each": (2, 1)}
CHILD = """
import json, sys
import modicum
from modicum.sweep.ranks import joined
from safetensors.torch import load_file

model, tokens, out = sys.argv[1:]
data = [{"input_ids": part} for part in load_file(tokens)["input_ids"].chunk(26)]  # 16 of them calibrate
with joined() as ranks:
    receipt = modicum.fit(model, data=data, method="gptq bits=4 group=64", target="modicum", out=out, overwrite=True, ranks=ranks).receipt
if ranks.leads:
    print(json.dumps(receipt["stages"]["assemble"]))
"""
JUDGING = ["fit", "demo", "--bpw", "4", "--allocator", "evopress", "--search-time", "30", "--samples", "16", "--json", "--overwrite"]


def main() -> None:
    sweeping()
    judging()


def sweeping() -> None:
    """One sweep by one process and by two ranks."""
    import transformers

    chance = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        config = transformers.LlamaConfig(**LARGE, vocab_size=VOCABULARY, max_position_embeddings=1024)
        model, tokens, out = random_checkpoint(Path(folder) / "model", config), Path(folder) / "tokens.safetensors", Path(folder) / "out"
        save_file({"input_ids": torch.randint(0, VOCABULARY, (SEQUENCES * 26 // 16, TOKENS), generator=chance)}, tokens)
        # In turns: what else the machine does falls on all alike.
        runs = [{name: _run(*each, "-c", CHILD, model, tokens, out) for name, each in ARRANGEMENTS.items()} for _ in range(ROUNDS)]
        rows = []
        for name in ARRANGEMENTS:
            found = sorted((run[name] for run in runs), key=lambda stage: stage["seconds"])
            against = sorted(next(iter(run.values()))["seconds"] / run[name]["seconds"] for run in runs)
            seconds = f"{found[ROUNDS // 2]['seconds']:.0f} ({found[0]['seconds']:.0f} to {found[-1]['seconds']:.0f})"
            faster = f"{against[ROUNDS // 2]:.2f} ({against[0]:.2f} to {against[-1]:.2f})"
            rows.append((name, seconds, faster, f"{found[ROUNDS // 2]['peak_bytes'] / 1e6:.0f} MB"))
        note = f"160 million random weights, {SEQUENCES} sequences of {TOKENS} tokens, gptq 4 bits: seconds of calibrating and solving, the median "
        note += f"of {ROUNDS} rounds and their range. The peak is the first rank's. `python bench/run.py ranks`."
        show("Ranks: one sweep by several processes", ("arrangement", "seconds", "times as fast", "peak of one"), rows, note)


def judging() -> None:
    """Candidates of a search, judged by one process of two threads and by two of one."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for workers in (1, 2):
            search = _run(1, 2, "-m", "modicum", *JUDGING, "--workers", workers, "--out", Path(folder) / "out")["search"]
            rows.append((workers, search["evaluations"], f"{search['seconds']:.0f}", f"{search['evaluations'] / search['seconds']:.2f}"))
    note = "The demo, EvoPress at 4 bits per weight, two threads in all: starting the workers is in it. `python bench/run.py ranks`."
    show("Workers: candidates judged", ("workers", "candidates", "seconds", "candidates a second"), rows, note)


def _run(processes: int, threads: int, *words: Any) -> dict[str, Any]:
    """What a run says of itself; several processes under torchrun."""
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    if processes > 1 and words[0] == "-c":  # torchrun wants a file
        script = Path(words[4]).with_name("child.py")
        script.write_text(words[1], encoding="utf-8")
        words = (script, *words[2:])
    command = [sys.executable, *(several if processes > 1 else []), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
