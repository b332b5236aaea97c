"""A model that must run in 2 GiB with a context of 4,096 tokens in llama.cpp: weights, keys and values, and what is computed in all count.

Whether one can is told from headers alone. So this asks for models of 3 and of 11 billion parameters whose weights are not there: their files are
a header and a hole. Then the model in the package is fitted to a memory that is as tight for it.

python docs/gallery/06_two_gigabytes.py
"""

from __future__ import annotations

import json
import tempfile
from math import prod
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import modicum
from modicum.models.located import DEMO

BUDGET = {"context": 4096, "target": "gguf"}
SIZES = {"hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128}
# Few sequences and options, so that the script takes seconds; leave these out for a real model.
FEW = {"samples": 4, "test_samples": 4, "tokens": 128, "search_time": 0, "menu": "ggml type=q2_k,ggml type=q4_k,ggml type=q6_k"}


def main() -> None:
    """Say what would fit without any weights, then make something that does."""
    with tempfile.TemporaryDirectory() as folder:
        for layers in (28, 112):
            told = modicum.fit(headers(Path(folder) / f"{layers}", layers), memory="2GiB", dry_run=True, **BUDGET).receipt
            answer = "there is a file that fits." if told["fits"] else told["why"]
            print(f"{told['parameters'] / 1e9:.1f} billion parameters in {told['original_bytes'] / 1e9:.1f} GB: {answer}")
        made = modicum.fit("demo", memory="48MiB", out=Path(folder) / "made", **BUDGET, **FEW).receipt
        size, quality = made["bytes"], made["quality"]
        print(f"the demo in {made['request']['budget']}: {size['original']:,} bytes became {size['actual']:,}, KL {quality['mean']:.4f}")


def headers(directory: Path, layers: int) -> Path:
    """A checkpoint of so many layers with the demo's tokenizer, of which all but the weights is there."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_hidden_layers=layers, max_position_embeddings=8192, tie_word_embeddings=True, dtype="bfloat16",
        architectures=["LlamaForCausalLM"], **SIZES,
    )  # fmt: skip
    with torch.device("meta"):
        shapes = {name: list(value.shape) for name, value in LlamaForCausalLM(config).named_parameters()}
    entries, end = {}, 0
    for name, shape in shapes.items():
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + 2 * prod(shape)]}
        end += 2 * prod(shape)
    for part in (config, tokenizer):
        part.save_pretrained(directory)
    head = json.dumps(entries).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + end)  # a hole, which takes no room on disk
    return directory


if __name__ == "__main__":
    main()
