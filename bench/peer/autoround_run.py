"""Compress a causal language model by auto-round and save what it computes with as a dense checkpoint.

    PYTHONPATH=AUTOROUND python bench/peer/autoround_run.py --model DIR --tokens tokens.safetensors --recipe recipe.json --out DIR

Its recipe has `bits`, `group`, `iters` (its light recipe has 50 updates a block, the default 200, the best 1000) and, where not all blocks are to be
quantized, how many first `blocks` are; codes are symmetric, all else is auto-round's default, the dtype that it computes in too. `run.json` has
seconds by the clock and of the processor, and memory before and at the most: anonymous and shared, as modicum's own meter counts. The checkpoint
stands beside it where the recipe's `save` says so.
"""

import argparse
import json
import os
import threading
import time
from importlib.metadata import version
from pathlib import Path

import torch
from auto_round import AutoRound
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def held() -> int:
    """Anonymous and shared memory of this process in bytes."""
    told = (line.split() for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(("RssAnon:", "RssShmem:")))
    return sum(int(words[1]) for words in told) * 1024


def run(model_path: Path, tokens: Path, recipe: dict, out: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype="auto")
    for value in model.parameters():
        value.data = value.data.clone()  # out of the mapped file
    ids, blocks = load_file(tokens)["input_ids"], model.model.layers
    model.model.layers = blocks[: recipe.get("blocks") or len(blocks)]
    model.config.num_hidden_layers = len(model.model.layers)
    batches = torch.utils.data.DataLoader([{"input_ids": row} for row in ids], batch_size=8)
    # Random weights have no words; of a tokenizer nothing is asked here but that there is one.
    named = model_path if (model_path / "tokenizer_config.json").exists() else recipe["tokenizer"]
    tool = AutoRound(
        model, AutoTokenizer.from_pretrained(named), scheme=f"W{recipe['bits']}A16", bits=recipe["bits"], group_size=recipe["group"], sym=True,
        iters=recipe["iters"], seqlen=ids.shape[1], nsamples=len(ids), batch_size=8, dataset=batches, device_map="cpu", enable_torch_compile=False,
    )  # fmt: skip
    before, ended = held(), threading.Event()
    most = [before]

    def watch() -> None:
        while not ended.wait(0.02):
            most[0] = max(most[0], held())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    begun, used = time.perf_counter(), time.process_time()
    found, _ = tool.quantize()
    said = {"seconds": time.perf_counter() - begun, "processor": time.process_time() - used, "before": before, "memory": most[0]}
    ended.set()
    watcher.join()
    out.mkdir(parents=True, exist_ok=True)
    if recipe["save"]:
        found.model.layers.extend(blocks[len(found.model.layers) :])
        found.config.num_hidden_layers = len(blocks)
        found.save_pretrained(out)
        AutoTokenizer.from_pretrained(named).save_pretrained(out)
    (out / "run.json").write_text(json.dumps({**said, "recipe": recipe, "version": version("auto-round")}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "tokens", "recipe", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    run(arguments.model, arguments.tokens, json.loads(arguments.recipe.read_text()), arguments.out)


if __name__ == "__main__":
    main()
