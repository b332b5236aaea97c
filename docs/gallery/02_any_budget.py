"""Measure a model once, then ask for any budget, target or part of the menu: each is chosen in seconds, and the model not measured again.

python docs/gallery/02_any_budget.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import modicum

# Few sequences, so that the script takes a minute; leave these out for a real model.
SMALL = {"samples": 8, "test_samples": 8, "tokens": 256, "menu": "int2,int3,int4,int8,ziplm keep=0.75"}
BUDGETS = ({"bpw": 2.6}, {"size": "3.2MB"}, {"params": "90%", "bpw": 5}, {"bpw": 4, "target": "transformers", "menu": "int2,int4,int8"})


def main() -> None:
    """Fit the demo to four budgets from one measurement."""
    with tempfile.TemporaryDirectory() as folder:
        measured = modicum.measure("demo", out=Path(folder) / "measured", **SMALL)
        rank = measured.findings.rank
        if rank is not None:
            print(f"predicted harm ranks {rank['plans']} random plans as their divergence does: Spearman {rank['spearman']:.3f}")
        print(f"{'budget':<28} {'target':<13} {'bytes':>9} {'stored values':>14} {'KL':>8} {'chosen in':>10}")
        for budget in BUDGETS:
            settings = {"target": "modicum"} | budget
            show(modicum.fit(measured=measured, search_time=0, **settings))


def show(result: modicum.Result) -> None:
    """Print one row from a receipt."""
    receipt = result.receipt
    request, seconds = receipt["request"], receipt["search"]["seconds"]
    values = receipt["values"]["actual"] / receipt["values"]["original"]
    row = f"{request['budget']:<28} {request['target']:<13} {receipt['bytes']['actual']:>9} {values:>13.1%}"
    print(f"{row} {receipt['quality']['mean']:>8.4f} {seconds:>8.2f} s")


if __name__ == "__main__":
    main()
