"""Train beside a model in the loop of Transformers' Trainer: it is given an optimizer of what is trained, and one callback.

Trainer knows the parameters of its model alone; the callback adds what methods add to the loss, moves what they move, and lets gradients go.
Trainer itself needs accelerate (`pip install accelerate`); without it the same events are called here in the order in which Trainer calls them.

python docs/gallery/10_trainers_loop.py
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, TrainingArguments
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, TrainerControl, TrainerState

import modicum
from modicum.data.splits import Splits, from_text
from modicum.data.text import shipped
from modicum.models.located import locate
from modicum.train.callback import Callback
from modicum.train.objectives import next_token

STEPS, BATCH, TOKENS, RATE = 16, 4, 64, 1e-2


def main() -> None:
    """AdaLoRA, whose ranks move as it trains: what no optimizer that was made beforehand would know of."""
    base = locate("demo")
    texts = capitals(modicum.open_model("demo").tokenizer)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = judged(model, texts)
    with modicum.trained(model, "adalora rank=2 every=2", total=STEPS) as t:
        optimizer, many = torch.optim.AdamW(t.parameters(), lr=RATE), t.count
        run(model, texts, optimizer, Callback(t))
        print(f"{many:,} trained numbers at first, {t.count:,} at the end")
        delta, inside = t.delta("demo"), judged(model, texts)
    print(f"loss per token: {before:.4f} before, {inside:.4f} after; as a delta {delta.nbytes:,} bytes")
    with modicum.changed(model, delta):
        print(f"the model with the delta: {judged(model, texts):.4f}")


def run(model: Any, texts: Splits, optimizer: torch.optim.Optimizer, callback: Callback) -> None:
    """One pass over the data by Trainer, or by its events."""
    if importlib.util.find_spec("accelerate"):
        from transformers import Trainer

        rows = [{"input_ids": ids, "labels": ids} for batch in texts.calibration for ids in batch["input_ids"]]
        with tempfile.TemporaryDirectory() as place:
            settings = TrainingArguments(
                place, max_steps=STEPS, per_device_train_batch_size=BATCH, use_cpu=True, report_to=[], save_strategy="no"
            )
            Trainer(model, settings, train_dataset=rows, optimizers=(optimizer, None), callbacks=[callback]).train()  # type: ignore[arg-type]
        return
    handler = CallbackHandler([DefaultFlowCallback(), callback], model, None, optimizer, None)
    settings, state, control = type("Settings", (), {"max_grad_norm": 1.0})(), TrainerState(max_steps=STEPS), TrainerControl()
    handler.on_train_begin(settings, state, control)
    for batch in texts.calibration[:STEPS]:
        model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss.backward()
        handler.on_pre_optimizer_step(settings, state, control)
        optimizer.step()
        handler.on_optimizer_step(settings, state, control)


def capitals(tokenizer: Any) -> Splits:
    """The shipped texts in capitals, which the demo model has hardly seen."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "capitals.txt"
        file.write_text("\n".join(text.upper() for text in shipped("calibration")), encoding="utf-8")
        return from_text(file, tokenizer, samples=STEPS * BATCH, tokens=TOKENS, batch=BATCH, test_samples=8)


def judged(model: torch.nn.Module, texts: Splits) -> float:
    """Mean loss per token."""
    with torch.no_grad():
        found = [next_token(model, batch) for batch in texts.test]
    return sum(float(loss.sum()) for loss, _ in found) / sum(tokens for _, tokens in found)


if __name__ == "__main__":
    main()
