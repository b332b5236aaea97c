"""Two ways to two megabytes: a model trained small from the start, and the dense one of the same config trained alike and compressed afterwards.

Both learn the same text with the same number of updates. The first is written in our container and then, whole, as plain Transformers load it;
the second is what `fit` makes of the dense one in as many bytes. Both are judged on the same sequences.

python docs/gallery/12_small_from_the_start.py [UPDATES]
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path

import modicum
from modicum.models.located import locate
from modicum.train import Loop

UPDATES, BUDGET, TEXT = 400, "2MB", {"tokens": 128, "test_samples": 128}


def main(updates: int) -> None:
    """Train small; train dense and fit; judge both."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    loop = Loop(steps=updates, batch=8, rate=3e-3)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        LlamaConfig(
            vocab_size=1024, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
            max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
        ).save_pretrained(folder / "config")  # fmt: skip
        train = lambda out, **words: modicum.train(
            folder / "config", folder / out, tokenizer=locate("demo"), samples=2048, loop=loop, **TEXT, **words
        )
        small, dense = train("small", size=BUDGET, method="rigl every=20"), train("dense", method="dense")
        modicum.densify(folder / "small", folder / "plain")
        loaded = AutoModelForCausalLM.from_pretrained(folder / "plain")
        share = sum(int((p != 0).sum()) for p in loaded.parameters()) / sum(p.numel() for p in loaded.parameters())
        modicum.densify(folder / "dense", folder / "whole")
        fitted = modicum.fit(folder / "whole", BUDGET, target="modicum", out=folder / "fitted", search_time=0, samples=32, **TEXT)
        print(
            f"trained small, {small.receipt['method']}: {small.receipt['bytes']['written']:,} bytes; loaded plainly {share:.0%} is not zero"
        )
        for name, loss in (
            ("dense, as trained", dense.receipt["test"]["loss"]),
            ("trained small", small.receipt["test"]["loss"]),
            (f"fitted afterwards, {fitted.receipt['bytes']['actual']:,} bytes", math.log(fitted.receipt["quality"]["perplexity"])),
        ):
            print(f"{loss:.4f} nats per token: {name}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else UPDATES)
