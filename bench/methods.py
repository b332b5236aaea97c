"""Quantizers at 2, 3 and 4 bits, groups of 64, on the demo model: mean KL to the original with its interval."""

from __future__ import annotations

import modicum
from bench.common import SAMPLES, TEST, interval, show


def main() -> None:
    rows = []
    for bits in (2, 3, 4):
        for method in ("nearest", "hqq", "gptq"):
            result = modicum.fit(
                "demo",
                method=f"{method} bits={bits}",
                target="modicum",
                samples=SAMPLES,
                test_samples=TEST,
                keep=["model.embed_tokens"],
                allow_broken=True,
            )
            quality = result.receipt["quality"]
            rows.append((bits, method, result.receipt["bytes"]["actual"], interval(quality), f"{quality['perplexity']:.3f}"))
    show("Methods: all linears of the demo, groups of 64", ("bits", "method", "bytes", "mean KL [95 %]", "perplexity"), rows)


if __name__ == "__main__":
    main()
