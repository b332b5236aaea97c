"""Language domains learnt one after the other: what each learner knows of the first after the second, on the evidence's small decoder.

python -m bench.learn

The decoder knows Python's library. It learns help topics, then sources with every word in capitals; losses are of windows that no training saw.
Finished steps are kept under out/evidence/learn.
"""

from __future__ import annotations

import functools
import sys
import time
from typing import Any

import torch

from bench.common import ROOT, show

sys.path.insert(0, str(ROOT / "evidence"))

METHODS = ("clr", "finetune")
TOKENS, TRAIN, TEST = 64, 256, 32
SETTINGS = {"clr": "rate=0.01", "mos": "rate=0.003", "finetune": "rate=0.001", "joint": "rate=0.001"}


def tasks() -> list[Any]:
    """Two domains, of windows that do not overlap."""
    from modicum.learn.tasks import Task
    from scenes.domains import documents, tokenizer

    prose = "\n".join(documents("prose", "train"))
    capitals = "\n".join(documents("sources", "train")[:40]).upper()
    found = []
    for name, text in (("prose", prose), ("capitals", capitals)):
        ids = torch.tensor(tokenizer()(text[:400_000], verbose=False)["input_ids"])
        rows = [_row(window) for window in ids[: len(ids) // TOKENS * TOKENS].view(-1, TOKENS)]
        places = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
        found.append(Task(name, [rows[place] for place in places[TEST : TEST + TRAIN]], [rows[place] for place in places[:TEST]]))
    return found


def _row(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None], "labels": ids[None]}


def once(method: str) -> dict[str, Any]:
    """What a learner's receipt says."""
    from modicum.learn.learning import learn
    from scenes.decoder import decoder
    from scenes.domains import opened

    start = time.process_time()
    receipt = learn(opened(decoder()), tasks(), method=f"{method} steps=50 batch=8 {SETTINGS[method]}").receipt
    kept = ("matrix", "lost", "same bits", "bytes", "parameters")
    return {name: receipt[name] for name in kept} | {"seconds": time.process_time() - start}


def main() -> None:
    """Learn, and tell."""
    from kept import Kept

    kept, rows = Kept.of("learn"), []
    for method in METHODS:
        found = kept(method, functools.partial(once, method))
        before, first, last = found["matrix"][0], found["matrix"][1], found["matrix"][2]
        lost = found["lost"]["prose"]
        told = (
            "the same bits"
            if found["same bits"]["prose"]
            else f"{lost['mean']:+.3f} ({lost['interval'][0]:+.3f} to {lost['interval'][1]:+.3f})"
        )
        size = sum(found["bytes"]) / (4 * found["parameters"])
        rows.append(
            [
                method, f"{before[0]:.3f}", f"{first[0]:.3f}", f"{last[0]:.3f}", told, f"{before[1]:.3f}", f"{last[1]:.3f}", f"{size:.1%}",
                f"{found['seconds']:.0f} s",
            ]
        )  # fmt: skip
    show(
        "Learning on: help topics, then sources in capitals, by a decoder of a million parameters",
        (
            "learner", "prose before", "when learnt", "at the end", "lost since (95 %)", "capitals before", "at the end",
            "bytes of the model's", "seconds of one processor",
        ),
        rows,
        "Nats a token on 32 windows of 64 tokens that no training saw; 50 updates of 8 windows for each.",
    )  # fmt: skip


if __name__ == "__main__":
    main()
