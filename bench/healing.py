"""What healing costs for what it takes back: seconds of training per hundredth of a nat, on the demo.

``python -m bench.healing [METHOD ...]`` measures those, and keeps what is known of others.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from bench.common import RESULTS, show

METHODS = ("nearest bits=2", "gptq bits=2", "magnitude keep=0.5")
STEPS, SAMPLES, TOKENS, TEST = 20, 32, 128, 32
KEPT = RESULTS / "healing.json"
HEAD = ("method", "mean KL before", "after", "change, 95 %", "trained", "seconds of one processor", "of them per 0.01 of KL")
NOTE = (
    f"{STEPS} updates of 8 of {SAMPLES} sequences of {TOKENS} tokens at the default rate, norms and what is stored trained, judged on {TEST} test "
    "sequences. Most of an update is what any training spends, and the original's own pass beside it. ``python -m bench.healing``."
)


def measure(method: str) -> tuple[str, ...]:
    """One method's row."""
    import modicum
    from modicum.fit import heal

    spent: list[float] = []
    trained = heal._trained

    def timed(*words: Any) -> Any:
        begun = time.process_time()
        found = trained(*words)
        spent.append(time.process_time() - begun)
        return found

    heal._trained = timed
    told = modicum.fit(
        "demo", method=method, target="modicum", heal=STEPS, samples=SAMPLES, tokens=TOKENS, test_samples=TEST, allow_broken=True
    ).receipt["healing"]
    heal._trained = trained
    test = told["test"]
    low, high = test["interval"]
    return (
        method, f"{test['before']:.4f}", f"{test['after']:.4f}",
        f"{test['change']:+.4f} ({low:+.4f} to {high:+.4f})", f"{told['trained']:,}", f"{sum(spent):.1f} s",
        f"{sum(spent) / max(1e-9, -100 * test['change']):.1f} s",
    )  # fmt: skip


def main() -> None:
    """Measure what is asked for."""
    known = {row[0]: tuple(row) for row in json.loads(KEPT.read_text(encoding="utf-8"))["rows"]} if KEPT.exists() else {}
    for method in sys.argv[1:] or METHODS:
        known[method] = measure(method)
    show("Healing", HEAD, [known[method] for method in METHODS if method in known], NOTE)


if __name__ == "__main__":
    main()
