"""An adapter made here used by PEFT, and the same adapter read back: both compute what was trained.

`to_peft` writes a folder that `peft.PeftModel` loads, `from_peft` reads any such folder as a delta. In a shell:
`modicum delta learnt --base MODEL --format peft --out adapter`, and `modicum apply MODEL adapter --out whole`. Without PEFT its part is left out.

python docs/gallery/16_peft_both_ways.py
"""

from __future__ import annotations

import importlib.util
import tempfile

import torch
from transformers import AutoModelForCausalLM

import modicum
from modicum.data.splits import from_text
from modicum.delta.peft import from_peft, to_peft
from modicum.models.located import DEMO
from modicum.train.objectives import next_token

STEPS = 10


def main() -> None:
    """Train, write, load by PEFT, read back; how far logits are from those in training."""
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    rows = from_text(None, modicum.open_model("demo").tokenizer, samples=4 * STEPS, tokens=64, batch=4, test_samples=1).calibration
    ids = rows[0]["input_ids"]
    with modicum.trained(model, "lora rank=4", total=STEPS) as t:
        optimizer = torch.optim.AdamW(t.parameters(), lr=5e-3)
        for row in rows[:STEPS]:
            losses, count = next_token(model, row)
            optimizer.zero_grad()
            (losses.sum() / count).backward()
            optimizer.step()
            t.revise(optimizer)
        with torch.no_grad():
            learnt, delta = model(ids).logits, t.delta("demo")
    told = lambda who, found: print(f"{who:24} logits apart at most {float((found - learnt).abs().max()):.2e}")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        to_peft(delta, folder, model)
        if importlib.util.find_spec("peft") is not None:
            from peft import PeftModel

            plain = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
            told("loaded by PEFT", PeftModel.from_pretrained(plain, folder)(ids).logits)
        with modicum.changed(model, from_peft(folder, model)):
            told("read back", model(ids).logits)
        told("the model as it was", model(ids).logits)


if __name__ == "__main__":
    main()
