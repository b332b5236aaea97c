"""Go on training from a compressed model: make it dense again, train for a minute, and give every weight what it had.

Packed weights take no gradients, and loaders that decode on the fly may read mixed widths wrongly. `modicum.densify` writes the exact dense model, an
ordinary checkpoint. Afterwards the plan of the first run compresses it again, to the same bytes.

python docs/gallery/08_train_on.py
"""

from __future__ import annotations

import tempfile
from itertools import cycle, islice
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import modicum
from modicum.data.splits import from_text

STEPS, TOKENS = 40, 128
# Few sequences, so that the script takes a minute; leave these out for a real model.
FEW = {"samples": 16, "test_samples": 8, "tokens": TOKENS, "target": "modicum"}


def main() -> None:
    """Compress, densify, train, and compress again; what each is worth on texts that none of them saw."""
    texts = from_text(None, modicum.open_model("demo").tokenizer, samples=8 * STEPS, tokens=TOKENS, batch=8, test_samples=1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        first = modicum.fit("demo", method="gptq bits=2 group=32", out=folder / "small", allow_broken=True, **FEW)
        dense = modicum.densify(folder / "small", folder / "dense")
        print(f"densified: {dense.bytes:,} bytes, whose outputs differ by {dense.difference:.1g} of their square")
        train(folder / "dense", texts.calibration)
        again = modicum.fit(folder / "dense", plan=first.plan, out=folder / "again", allow_broken=True, **FEW)
        for what, result in (("compressed", first), ("trained and compressed again", again)):
            told = modicum.evaluate(result.out, samples=16, tokens=TOKENS)["quality"]
            print(f"{what:<30} {result.receipt['bytes']['actual']:>9,} bytes, perplexity {told['perplexity']:.2f}")


def train(directory: Path, batches: list) -> None:
    """A few steps on texts, in float32, written back where the model was."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for step, batch in enumerate(islice(cycle(batches), STEPS)):
        loss = model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in (0, STEPS - 1):
            print(f"step {step + 1}: loss {loss.item():.3f}")
    model.to(torch.bfloat16).save_pretrained(directory)


if __name__ == "__main__":
    main()
