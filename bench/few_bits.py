"""Scales in fewer bits, and codebooks, on the demo: mean KL and bits for each treated weight, all that stands beside the codes counted.

`python -m bench.few_bits [OPTION ...]`; what was measured already is kept in build/bench/few_bits.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import modicum
from bench.common import ROOT, interval, show

KEPT = ROOT / "build" / "bench" / "few_bits.json"
GROUPS = ((64, 16), (32, 6), (64, 6), (32, 16))
OPTIONS = (
    *(
        f"gptq bits={bits} group={group} symmetric=true" + (f" scales={scales}" if scales < 16 else "")
        for bits in (2, 3)
        for group, scales in GROUPS
    ),
    "gptvq bits=4 dimension=2",
    "gptvq bits=8 dimension=4",
    "watersic rate=2.25",
)
SAMPLES, TOKENS, TEST = 16, 256, 32


def main(options: Sequence[str] = OPTIONS) -> None:
    found = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for option in options:
        if option not in found:
            receipt = modicum.fit(
                "demo", method=option, target="modicum", samples=SAMPLES, tokens=TOKENS, test_samples=TEST, allow_broken=True,
                keep=("model.embed_tokens", "lm_head"),
            ).receipt  # fmt: skip
            whole, kept = receipt["bytes"]["actual"], sum(site["bytes"] for site in receipt["sites"] if site["option"] == "keep")
            weights = sum(site["weights"] for site in receipt["sites"] if site["option"] != "keep")
            found[option] = {"bytes": whole, "bits": 8 * (whole - kept) / weights, "kl": interval(receipt["quality"])}
            KEPT.parent.mkdir(parents=True, exist_ok=True)
            KEPT.write_text(json.dumps(found, indent=1))
            print(option, found[option], flush=True)
    show(
        "Few bits: scales in fewer bits, and codebooks, on the demo",
        ("option", "bits for each treated weight", "bytes of the file", "KL"),
        [(option, f"{each['bits']:.2f}", each["bytes"], each["kl"]) for option, each in found.items()],
        f"Table and head kept; {SAMPLES} × {TOKENS} calibration tokens, {TEST} test sequences. `python -m bench.few_bits`.",
    )


if __name__ == "__main__":
    main(sys.argv[1:] or OPTIONS)
