"""The sweep against the model's own forward over the same tokens, in one process."""

from __future__ import annotations

import statistics
import time

import torch

from bench.common import SAMPLES, TOKENS, show
from modicum.core.method import Need
from modicum.data.splits import call, from_text
from modicum.models.open import open_model
from modicum.sweep import Sweep, output_gradients, rehearse


def main() -> None:
    model = open_model("demo")
    batches = from_text(None, model.tokenizer, samples=SAMPLES, tokens=TOKENS).calibration
    script = rehearse(model, batches[0])
    model.weights.load(model.weights.names)

    def plain() -> None:
        with torch.no_grad():
            for batch in batches:
                call(model.module, batch)

    works = {
        "plain forward": plain,
        "suspended at every unit": lambda: Sweep(model, batches, script, lambda stage: None).finish(),
        "with every covariance": lambda: Sweep(model, batches, script, lambda stage: None, needs={Need.COVARIANCE}).finish(),
        "output gradients, two batches": lambda: output_gradients(model, batches[:2], script),
    }
    seconds = {name: statistics.median(_seconds(work) for _ in range(3)) for name, work in works.items()}
    rows = [(name, f"{spent:.2f} s", f"{spent / seconds['plain forward']:.2f}") for name, spent in seconds.items()]
    show(f"Sweep: demo, {SAMPLES} x {TOKENS} tokens, bfloat16", ("work", "seconds", "times the plain forward"), rows)


def _seconds(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
