"""Models of a billion parameters and more on this machine: random weights of a known shape, one fit in a process of its own.

`python bench/large.py [1.1b] [7b]`; the checkpoint and the output lie in a temporary folder (`TMPDIR`), which needs three times the model's room.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.common import show
from modicum.core.budget import readable
from modicum.testing import random_checkpoint

# Shape, calibration sequences of 512 tokens, and memory allowed.
SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
MODELS = {
    "1.1b": (dict(zip(SHAPE, (2048, 5632, 22, 32, 4))), 128, "3GB"),
    "7b": (dict(zip(SHAPE, (4096, 11008, 32, 32, 32))), 16, "6GB"),
}
TOKENS, VOCABULARY, METHOD = 512, 32000, "gptq bits=4 group=128"
CHILD = """
import json, sys
import torch
import modicum

directory, out, rows, ram, method = sys.argv[1:]
chance = torch.Generator().manual_seed(0)
data = [{"input_ids": torch.randint(0, 32000, (int(rows), 512), generator=chance)} for _ in range(26)]  # 16 of them calibrate
result = modicum.fit(directory, data=data, method=method, ram=ram, out=out)
print(json.dumps({key: result.receipt[key] for key in ("stages", "bytes", "data", "quality", "verification", "events")}))
"""


def main(names: tuple[str, ...] = ("1.1b",)) -> None:
    rows = []
    for name in names:
        shape, sequences, ram = MODELS[name]
        with tempfile.TemporaryDirectory() as folder:
            rows.append((name, *run(Path(folder), shape, sequences, ram)))
            print(*rows[-1], flush=True)
    show(
        f"Large models: random weights, {METHOD}, {TOKENS} tokens a sequence",
        ("model", "on disk", "sequences", "--ram", "peak", "minutes", "of it calibrating and solving", "result", "verified by"),
        rows,
        "Peak is anonymous plus shared memory of the whole process, sampled 50 times a second. Minutes are from opening to the receipt.",
    )


def run(folder: Path, shape: dict[str, int], sequences: int, ram: str) -> tuple[str, ...]:
    import transformers

    config = transformers.LlamaConfig(**shape, vocab_size=VOCABULARY, max_position_embeddings=2048, tie_word_embeddings=False)
    model = random_checkpoint(folder / "model", config)
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    words = [model, folder / "out", sequences // 16, ram, METHOD]
    done = subprocess.run([sys.executable, "-c", CHILD, *map(str, words)], stdout=subprocess.PIPE, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    peak = max(stage["peak_bytes"] for stage in told["stages"].values())
    minutes = {name: stage["seconds"] / 60 for name, stage in told["stages"].items()}
    return (
        readable(size), str(sequences), ram, readable(int(peak)), f"{sum(minutes.values()):.1f}", f"{minutes['assemble']:.1f}",
        readable(told["bytes"]["actual"]), told["verification"]["loader"],
    )  # fmt: skip


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or ("1.1b",))
