"""``method=auto`` beside single methods of as many trained numbers: held-out loss of a small decoder adapted to prose, over seeds.

Rate, updates and data are the same for all; the rate is LoRA's best of 3e-3, 1e-2 and 2e-2 on the validation part.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from bench.common import ROOT, show

sys.path.insert(0, str(ROOT / "evidence"))

SINGLE = ("lora rank=4", "rslora rank=4", "lora_ga rank=4", "pissa rank=4", "dora rank=3", "bone rank=4")
STEPS, RATE, SEEDS = 40, 1e-2, (0, 1, 2)
KEPT = ROOT / "bench" / "results" / "kept" / "choosing_methods.json"


def measured(seed: int, found: dict[str, Any]) -> dict[str, Any]:
    """Losses per test sequence by method, and how many numbers each trains; what is found already is not measured again."""
    from modicum.train import Loop, auto
    from modicum.train.loop import evaluate, train
    from modicum.train.trained import trained
    from scenes import decoder, domains

    torch.set_num_threads(1)
    module = domains.opened(decoder.decoder())
    find = lambda part: [{"input_ids": row[None]} for row in domains.windows("prose", part, 64)]
    rows, test = find("train"), find("test")[:96]
    with trained(module, SINGLE[0]) as t:
        most = t.count
    units = auto.planned_units(module)
    swept = auto.sweep(module, rows[seed * 128 : (seed + 1) * 128], units)
    plan = auto.chosen(auto.table(module, units, swept, seed), {"values": most})
    for name, option in (("auto", plan), *((option, option) for option in SINGLE)):
        if name in found:
            continue
        with trained(module, option, total=STEPS, seed=seed, gradients=swept.whole) as t:
            train(module, t, rows, Loop(steps=STEPS, batch=8, rate=RATE, seed=seed))
            found[name] = {"count": t.count, "losses": [loss / count for loss, count in evaluate(module, test)]}
        print(seed, name, found[name]["count"], sum(found[name]["losses"]) / len(test), flush=True)
    return found


def main() -> None:
    """Measure what is not known yet, and show the mean over seeds."""
    from modicum.numerics.interval import interval

    known = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    for seed in map(int, sys.argv[1:]) if sys.argv[1:] and sys.argv[1].isdigit() else SEEDS:
        if len(known.get(str(seed), {})) <= len(SINGLE):
            known[str(seed)] = measured(seed, known.get(str(seed), {}))
            KEPT.parent.mkdir(exist_ok=True)
            KEPT.write_text(json.dumps(known) + "\n", encoding="utf-8")
    rows = []
    mean = lambda name: [
        sum(known[seed][name]["losses"][at] for seed in known) / len(known) for at in range(len(known["0"]["auto"]["losses"]))
    ]
    for name in ("auto", *SINGLE):
        differences = [mine - other for mine, other in zip(mean("auto"), mean(name))]
        centre, low, high = interval(differences) if name != "auto" else (0.0, 0.0, 0.0)
        each = [sum(known[seed][name]["losses"]) / len(mean(name)) for seed in known]
        rows.append(
            (name, f"{known['0'][name]['count']:,}", f"{sum(each) / len(each):.4f}", ", ".join(f"{loss:.4f}" for loss in each),
             "" if name == "auto" else f"{centre:+.4f} ({low:+.4f} to {high:+.4f})")
        )  # fmt: skip
    show("Choosing methods: auto beside single methods of as many trained numbers", HEAD, rows, NOTE)


HEAD = ("method", "trained numbers", "held-out loss", "by seed", "auto less this one, 95 % over sequences")
NOTE = (
    f"A decoder of a million parameters, trained on sources, adapted to prose in {STEPS} updates of 8 windows of 64 tokens at a rate of {RATE:g}; "
    "96 windows of the test part; ``python -m bench.choosing_methods``."
)

if __name__ == "__main__":
    main()
