"""The sweep against the model's own forward, and against its matrix products alone, over the same tokens in one process."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from bench.common import SAMPLES, TOKENS, show
from modicum.core.method import Need
from modicum.data.splits import call, from_text
from modicum.models.model import Model
from modicum.models.open import open_model
from modicum.numerics.gram import add_gram
from modicum.sweep import Script, Sweep, output_gradients, rehearse
from modicum.testing import random_checkpoint

# A decoder of 160 million parameters.
LARGE = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 12}
VOCABULARY = 32000


def main() -> None:
    model = open_model("demo")
    compare("demo", model, from_text(None, model.tokenizer, samples=SAMPLES, tokens=TOKENS).calibration)
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        config = transformers.LlamaConfig(**LARGE, vocab_size=VOCABULARY, max_position_embeddings=1024)
        chance = torch.Generator().manual_seed(0)
        batches = [{"input_ids": torch.randint(0, VOCABULARY, (8, TOKENS), generator=chance)} for _ in range(2)]
        compare("160m", open_model(random_checkpoint(Path(folder), config)), batches)


def compare(name: str, model: Model, batches: list) -> None:
    model.weights.load(model.weights.names)
    model = open_model(model.module)  # one that stays in memory
    script = rehearse(model, batches[0])

    def plain() -> None:
        with torch.no_grad():
            for batch in batches:
                call(model.module, batch)

    works = {
        "its matrix products": products(model, script, batches, covariances=False),
        "its matrix products, covariances among them": products(model, script, batches, covariances=True),
        "plain forward": plain,
        "suspended at every unit": lambda: Sweep(model, batches, script, lambda stage: None).finish(),
        "with every covariance": lambda: Sweep(model, batches, script, lambda stage: None, needs={Need.COVARIANCE}).finish(),
    }
    if name == "demo":
        works["output gradients, two batches"] = lambda: output_gradients(model, batches[:2], script)
    # In turns: what else the machine does falls on all alike.
    found: dict[str, list[float]] = {work: [] for work in works}
    for _ in range(3):
        for work, run in works.items():
            found[work].append(_seconds(run))
    seconds = {work: statistics.median(times) for work, times in found.items()}
    against = {"with every covariance": "its matrix products, covariances among them", "plain forward": "its matrix products"}
    rows = [
        (
            work,
            f"{spent:.2f} s",
            f"{spent / seconds['plain forward']:.2f}",
            f"{spent / seconds[against[work]]:.2f}" if work in against else "",
        )
        for work, spent in seconds.items()
    ]
    tokens = sum(batch["input_ids"].numel() for batch in batches)
    if name != "demo":
        profiled(name, works["with every covariance"], tokens)
    show(f"Sweep {name}: {tokens} tokens, bfloat16", ("work", "seconds", "times the plain forward", "times its products"), rows)


def profiled(name: str, work, tokens: int) -> None:
    """Where a sweep's time goes, by torch's operations, of one processor."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        started = time.process_time()
        work()
        whole = time.process_time() - started
    operations = {event.key: (event.self_cpu_time_total / 1e6, event.count) for event in found.key_averages()}
    clock = sum(seconds for seconds, _ in operations.values())
    most = sorted(operations, key=lambda key: -operations[key][0])[:12]
    rows = [(key, operations[key][1], f"{operations[key][0]:.2f} s", f"{operations[key][0] / clock:.0%}") for key in most]
    left = sum(operations[key][0] for key in operations if key not in most)
    rows.append(("all others", "", f"{left:.2f} s", f"{left / clock:.0%}"))
    note = "aten::addmm_ are the covariances, aten::mm the model's own products. Watching each operation "
    note += f"takes time of its own; all threads together worked {whole:.1f} s. `python bench/run.py sweep`."
    show(f"Sweep {name} profile: {tokens} tokens with every covariance", ("operation", "calls", "seconds", "share"), rows, note)


def products(model: Model, script: Script, batches: list, *, covariances: bool):
    """The products of every unit's weight with its inputs, of attention, and of covariances, on values of no meaning."""
    tokens, length = batches[0]["input_ids"].numel(), batches[0]["input_ids"].shape[1]
    modules = [part for part in model.module.modules() if isinstance(part, nn.Linear)]
    widths = {part.in_features for part in modules}
    inputs = {width: torch.randn(tokens, width).bfloat16() for width in widths}
    rows = {width: inputs[width].float() for width in widths}
    totals = {width: torch.zeros(width, width) for width in widths}
    grams = [model.units[stage[0]].shape[1] for stage in script.stages if model.units[stage[0]].kind != "embedding"]
    heads = model.config.num_attention_heads
    states = torch.randn(len(batches[0]["input_ids"]), heads, length, model.config.hidden_size // heads).bfloat16()

    def run() -> None:
        with torch.no_grad():
            for _ in batches:
                for part in modules:
                    F.linear(inputs[part.in_features], part.weight)
                for _ in model.blocks:
                    F.scaled_dot_product_attention(states, states, states, is_causal=True)
                for width in grams if covariances else []:
                    add_gram(totals[width], rows[width])

    return run


def _seconds(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
