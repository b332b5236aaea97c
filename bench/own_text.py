"""Calibration text: what the demo writes itself against given text, prose of another kind, and a mixture, judged on the same windows.

What is finished is kept in ``out/bench``, so that a run that was stopped goes on.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from pydoc_data import topics

import torch

import modicum
from bench.common import ROOT, show
from modicum.data.splits import from_text
from modicum.data.text import shipped
from modicum.models.open import open_model
from modicum.numerics.interval import interval

KEPT = ROOT / "out" / "bench" / "own_text.json"
METHODS = ("sparsegpt keep=0.5",)
SAMPLES, TOKENS, TEST, GIVEN = 32, 128, 48, "given text, like that of the test"


def main(methods: tuple[str, ...] = METHODS) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as place:
        sources, prose = Path(place, "sources.txt"), Path(place, "prose.txt")
        known = {text.strip() for text in topics.topics.values()}
        sources.write_text("<|endoftext|>".join(text for text in shipped("calibration") if text.strip() not in known), encoding="utf-8")
        prose.write_text("<|endoftext|>".join(sorted(topics.topics.values())), encoding="utf-8")
        data = {
            GIVEN: str(sources),
            "what the demo writes itself": "self",
            "half of each": f"{sources}=1,self=1",
            "prose of another kind": str(prose),
        }
        model = open_model("demo")
        windows = torch.cat([batch["input_ids"] for batch in from_text(None, model.tokenizer, tokens=TOKENS, test_samples=TEST).test])
        model.weights.load(model.weights.names)
        wanted = logarithms(model.module, windows)
        for method in methods:
            found = {name: kept(f"{method}, {name}", partial(divergences, method, path, windows, wanted)) for name, path in data.items()}
            for name, each in found.items():
                mean, low, high = interval((each - found[GIVEN]).tolist())
                apart = "" if name == GIVEN else f"{mean:+.5f} [{low:+.5f}, {high:+.5f}]"
                rows.append((method, name, f"{float(each.mean()):.5f}", apart))
    show(
        "Calibration text: the demo's own against given text",
        ("method", "calibrated on", "mean KL", "more than with given text [95 %]"),
        rows,
        f"{SAMPLES} windows of {TOKENS} tokens calibrate; {TEST} windows of the shipped test text judge, paired. Own text is drawn at temperature 1.",
    )


def kept(step: str, work: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What a step found, done now or before."""
    known = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if step not in known:
        known[step] = work().tolist()
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        KEPT.write_text(json.dumps(known))
    return torch.tensor(known[step])


def divergences(method: str, path: str, windows: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean KL of each window."""
    made = modicum.fit(
        "demo", method=method, data=path, target="modicum", samples=SAMPLES, tokens=TOKENS, test_samples=2, allow_broken=True
    )
    return (wanted.exp() * (wanted - logarithms(made.model, windows))).sum(-1).mean(1)


@torch.no_grad()
def logarithms(module: torch.nn.Module, windows: torch.Tensor) -> torch.Tensor:
    """Logarithms of chances (windows, tokens, vocabulary)."""
    return torch.cat([module(input_ids=part, use_cache=False).logits.float().log_softmax(-1) for part in windows.split(8)])


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or METHODS)
