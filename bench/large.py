"""Models of a billion parameters and more on this machine: random weights of a known shape, one fit in a process of its own.

`python bench/large.py [1.1b] [7b] [7b-4]`; the checkpoint and the output lie in a temporary folder (`TMPDIR`), which needs three times the
model's room.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.common import show
from modicum.core.budget import readable
from modicum.testing import random_checkpoint

# What the work costs at the least, at rates measured on two cores of the machine the figures are from.
FLOORS = {
    "1.1b": " Its products alone, on the idle machine: 1.3e14 operations of the forward at 400 gigaflops (bf16) are 5.3 minutes, 6.4e13 of the "
    "covariances at 186 (float32) 5.7, so 11 minutes before attention, norms, solving and files. "
    "Judging 40 more sequences with both models is another 8.5e13, 3.5 minutes: 14.5 in all, above the 14 that were aimed at.",
    "7b": " Its products alone, on the idle machine: 1.1e14 operations of the forward at 400 gigaflops (bf16) are 4.4 minutes, 4.5e13 of the "
    "covariances at 186 (float32) 4.0, 5.3e13 of factorizing and correcting 4.7, and 6.8e13 of judging 5 sequences with both models 2.8: 16 minutes.",
}
# Shape, calibration sequences of 512 tokens, and memory allowed.
SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
MODELS = {
    "1.1b": (dict(zip(SHAPE, (2048, 5632, 22, 32, 4))), 128, "2.8GB"),
    "7b": (dict(zip(SHAPE, (4096, 11008, 32, 32, 32))), 16, "6GB"),
    "7b-4": (dict(zip(SHAPE, (4096, 11008, 4, 32, 32))), 16, "6GB"),  # four of its blocks: the peak does not grow with depth
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
    for name in names:
        shape, sequences, ram = MODELS[name]
        with tempfile.TemporaryDirectory() as folder:
            row = run(Path(folder), shape, sequences, ram)
        show(
            f"Large {name}: random weights, {METHOD}, {TOKENS} tokens a sequence",
            (
                "on disk",
                "sequences",
                "--ram",
                "peak",
                "in",
                "minutes",
                "of it calibrating and solving",
                "of one processor",
                "result",
                "verified by",
            ),
            [row],
            "Peak is anonymous plus shared memory of the whole process, sampled 50 times a second. Minutes are from opening to the receipt; those "
            "of one processor are all that the two cores worked for it, whatever ran beside. "
            f"`python bench/large.py {name}`.{FLOORS.get(name, '')}",
        )


def run(folder: Path, shape: dict[str, int], sequences: int, ram: str) -> tuple[str, ...]:
    import transformers

    config = transformers.LlamaConfig(**shape, vocab_size=VOCABULARY, max_position_embeddings=2048, tie_word_embeddings=False)
    model = random_checkpoint(folder / "model", config)
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    words = [model, folder / "out", sequences // 16, ram, METHOD]
    before = _worked()
    done = subprocess.run([sys.executable, "-c", CHILD, *map(str, words)], stdout=subprocess.PIPE, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    peak, place = max((stage["peak_bytes"], name) for name, stage in told["stages"].items())
    minutes = {name: stage["seconds"] / 60 for name, stage in told["stages"].items()}
    return (
        readable(size), str(sequences), ram, readable(int(peak)), place, f"{sum(minutes.values()):.1f}", f"{minutes['assemble']:.1f}",
        f"{(_worked() - before) / 60:.1f}", readable(told["bytes"]["actual"]), told["verification"]["loader"],
    )  # fmt: skip


def _worked() -> float:
    """Seconds of one processor that processes started here have worked."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or ("1.1b",))
