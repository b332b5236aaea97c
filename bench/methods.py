"""Every method that makes weights smaller alone, at 2, 3 and 4 bits and at 50, 60 and 70 % sparsity, on the demo: mean KL with its interval, sorted.

`python -m bench.methods [bits] [sparse] [kept]`; what is finished is kept in out/bench, and with `kept` nothing else is shown. Rows of peers are
those of their own benches (`bench.side_by_side best` and `bench.learned`), on the same weights, windows and groups.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import modicum
from bench.common import RESULTS, ROOT, SAMPLES, TEST, interval, show

KEPT = ROOT / "out" / "bench" / "methods.json"
QUANTIZERS = (
    "nearest bits={0}", "hqq bits={0}", "adaquant bits={0}", "gptq bits={0}", "kmeans bits={1} dimension=2", "gptvq bits={1} dimension=2",
    "coded rate={0}", "watersic rate={0}",
)  # fmt: skip
# What sees no calibration data, and is given little of it.
DATALESS = ("nearest", "hqq", "kmeans", "coded", "float4")
FLOATS = ("float4", "float4 format=mxfp4", "zeroquant_fp", "zeroquant_fp format=mxfp4")
PRUNERS = (
    "magnitude keep={0}", "magnitude keep={0} per_row=true", "wanda keep={0}", "dsnot keep={0}", "gblm keep={0}", "dpruner keep={0}",
    "mfac keep={0}", "sparsegpt keep={0}",
)  # fmt: skip
HALVES = {
    "bits": {f"{bits} bits": [text.format(bits, 2 * bits) for text in QUANTIZERS] + list(FLOATS) * (bits == 4) for bits in (2, 3, 4)},
    "sparse": {f"{100 - round(100 * keep)} % sparse": [text.format(keep) for text in PRUNERS] for keep in (0.5, 0.4, 0.3)},
}
# The sparse half measures gradients by sequences too, so it takes shorter ones.
TOKENS, TESTS = {"bits": 512, "sparse": 128}, {"bits": TEST, "sparse": 24}
TITLES = {
    "bits": "Methods: all linears of the demo's blocks, groups of 64",
    "sparse": "Methods that prune: all linears of the demo, layer by layer",
}
NOTES = {
    "bits": "All linears of the demo's blocks, groups of 64 where there are groups; embedding and head stay. A rate counts all beside codes, "
    "bits in groups do not: a quarter to a half of a bit per weight, see bytes. Why a row is not best: nearest and hqq see no data, adaquant "
    "optimises each layer by gradients and moves steps, gptq lets later columns make up for earlier ones and keeps a loader's grid. Coded forms "
    "have more levels where numbers come often, and codebooks (kmeans without data, gptvq) levels where weights are, which no loader but ours "
    "reads; coded sees no data. Four-bit floats (float4 without data) have scales of eight bits. Of peers, bytes are those of the same codes.",
    "sparse": "All linears of the demo, share of zeros in each layer, 32 windows of 128 tokens; embedding and head stay. What remains makes up for "
    "what goes in sparsegpt, which knows the inputs of all tokens, and in mfac, which knows 16 gradients; the others move no weight. gblm and "
    "dpruner weigh by gradients of 16 windows too; dpruner leaves inputs out. dsnot mends mean outputs alone, magnitude sees no data.",
}


def measured(text: str, half: str) -> dict[str, Any]:
    """Bytes and quality of an option."""
    if text not in _known():
        keep = ["model.embed_tokens", "lm_head"]
        samples = 2 if text.split()[0] in DATALESS else SAMPLES
        receipt = modicum.fit(
            "demo", method=text, target="modicum", samples=samples, tokens=TOKENS[half], test_samples=TESTS[half], keep=keep, allow_broken=True
        ).receipt  # fmt: skip
        found = {"bytes": receipt["bytes"]["actual"], "quality": receipt["quality"]}
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        KEPT.write_text(json.dumps(_known() | {text: found}))  # another process may have written meanwhile
    return _known()[text]


def _known() -> dict[str, Any]:
    return json.loads(KEPT.read_text()) if KEPT.exists() else {}


def peers(group: str, half: str) -> list[tuple[dict[str, Any], str]]:
    """Rows of peers at as many bits, as their own benches have them, and of ``gptq`` from there where it was not measured here."""
    found = []
    for file, place, tool in (("side_by_side_best", 0, "llm-compressor, its best GPTQ"), ("learned_rounding", 2, "")):
        path = RESULTS / f"{file}.json"
        for row in json.loads(path.read_text())["rows"] if half == "bits" and path.exists() else []:
            at, said = (row[0], row[1]) if place == 0 else (f"{row[0]} bits", row[2])
            own, text = said.startswith("modicum"), f"gptq bits={group[0]}"
            if at != group or (own and (place or text in _known())) or (place and row[1] != "all"):
                continue
            mean, low, high = map(float, row[2 if place == 0 else 3].replace("[", "").replace("]", "").replace(",", "").split())
            quality = {"mean": mean, "low": low, "high": high, "perplexity": float(row[3 if place == 0 else 4])}
            found.append(({"bytes": "", "quality": quality}, text if own else tool or said))
    return found


def beside(quality: dict[str, Any], best: dict[str, Any]) -> str:
    """How an option stands against the best of its group."""
    if quality is best:
        return "best"
    return "inside the best's interval" if quality["mean"] <= best["high"] else f"{quality['mean'] / best['mean']:.2f} times the best"


def main(words: tuple[str, ...] = tuple(HALVES)) -> None:
    for half in [word for word in words if word in HALVES]:
        rows = []
        left = [text for texts in HALVES[half].values() for text in texts if "kept" in words and text not in _known()]
        for group, texts in HALVES[half].items():
            found = [(measured(text, half), text) for text in texts if text not in left] + peers(group, half)
            found.sort(key=lambda pair: pair[0]["quality"]["mean"])
            best = found[0][0]["quality"]
            for one, text in found:
                quality = one["quality"]
                told = (interval(quality), f"{quality['perplexity']:.3f}", beside(quality, best))
                rows.append((group, text, one["bytes"], *told))
        show(
            TITLES[half],
            ("at", "method", "bytes", "mean KL [95 %]", "perplexity", "beside the best"),
            rows,
            NOTES[half] + (f" Not run yet: {', '.join(left)}." if left else ""),
        )


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or tuple(HALVES))
