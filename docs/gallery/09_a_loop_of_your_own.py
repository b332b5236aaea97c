"""Train a few numbers beside a model in a loop of your own, keep what was learnt, put it into the checkpoint, and take it back.

Inside `modicum.trained` the model computes with weights that are made of trained numbers; outside it is what it was. What was learnt is a delta: it
knows the weights that it stands on, can be scaled and added, and a checkpoint that it was applied to gives back its base to the byte. What is
learnt here is text in capitals, which the demo model has hardly seen.

python docs/gallery/09_a_loop_of_your_own.py
"""

from __future__ import annotations

import filecmp
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import modicum
from modicum.data.splits import Splits, from_text
from modicum.data.text import shipped
from modicum.delta.applying import apply, revert
from modicum.models.located import locate
from modicum.train.objectives import next_token

STEPS, TOKENS = 30, 128


def main() -> None:
    """LoRA on all layers of the blocks, in twelve lines of plain torch."""
    base = locate("demo")
    texts = capitals(modicum.open_model("demo").tokenizer)
    model = AutoModelForCausalLM.from_pretrained(base)
    with modicum.trained(model, "lora rank=4", total=STEPS) as t:
        optimizer = torch.optim.AdamW(t.parameters(), lr=1e-3)
        print(f"{t.count:,} trained numbers beside {sum(p.numel() for p in model.parameters()):,}")
        for batch in texts.calibration[:STEPS]:
            loss, tokens = next_token(model, batch)
            optimizer.zero_grad()
            (loss.sum() / tokens).backward()
            optimizer.step()
            t.revise(optimizer)
        inside, delta = judged(model, texts.test), t.delta("demo")
    print(f"loss per token: {judged(model, texts.test):.4f} as it was, {inside:.4f} with what was learnt ({delta.nbytes:,} bytes)")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        apply(base, [delta], folder / "whole")
        apply(base, [0.5 * delta], folder / "half")
        for name in ("half", "whole"):
            print(f"the checkpoint with {name} of it: {judged(AutoModelForCausalLM.from_pretrained(folder / name), texts.test):.4f}")
        revert(folder / "whole", folder / "back")
        same = filecmp.cmp(base / "model.safetensors", folder / "back" / "model.safetensors", shallow=False)
        print(f"taken back, the file is {'the same to the byte' if same else 'another'}")


def capitals(tokenizer) -> Splits:
    """The shipped texts in capitals, a part to learn and a part to judge with."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "capitals.txt"
        file.write_text("\n".join(text.upper() for text in shipped("calibration")), encoding="utf-8")
        return from_text(file, tokenizer, samples=8 * STEPS, tokens=TOKENS, batch=8, test_samples=8)


def judged(model: torch.nn.Module, batches: list) -> float:
    """Mean loss per token."""
    with torch.no_grad():
        found = [next_token(model, batch) for batch in batches]
    return sum(float(loss.sum()) for loss, _ in found) / sum(tokens for _, tokens in found)


if __name__ == "__main__":
    main()
