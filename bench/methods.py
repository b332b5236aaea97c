"""Every method that makes weights smaller alone, at 2, 3 and 4 bits and at 50, 60 and 70 % sparsity, on the demo, peers beside them, sorted.

`python -m bench.methods [bits] [sparse] [kept] [row=ROW ...]`; what is finished is kept in out/bench, and with `kept` nothing else is shown; `row=`
measures one row and shows nothing. All see the same weights and windows, and are judged on the same sequences, so they are compared in pairs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

import modicum
from bench import peers
from bench.common import ROOT, SAMPLES, TEST, TOKENS, interval, show
from modicum.models.located import DEMO

KEPT = ROOT / "out" / "bench" / "methods.json"
QUANTIZERS = (
    "nearest bits={0}", "hqq bits={0}", "adaquant bits={0}", "gptq bits={0}", "gptq bits={0} symmetric=true", "kmeans bits={1} dimension=2",
    "gptvq bits={1} dimension=2", "coded rate={0}", "watersic rate={0}",
)  # fmt: skip
# What sees no calibration data, and is given little of it.
DATALESS = ("nearest", "hqq", "kmeans", "coded", "float4", "magnitude")
FLOATS = ("float4", "float4 format=mxfp4", "zeroquant_fp", "zeroquant_fp format=mxfp4")
PRUNERS = (
    "magnitude {0}", "magnitude {0} per_row=true", "wanda {0}", "wanda {0} | refine", "dsnot {0}", "gblm {0}", "dpruner {0}", "mfac {0}",
    "sparsegpt {0} refit=0 towards=0", "sparsegpt {0}",
)  # fmt: skip
CUTTERS = tuple(f"{name} keep=0.5" for name in ("ziplm", "liar", "flap", "taylor", "fisher_masks", "slimsam", "bonsai"))
SHORTER = ("blocks count=4", "replaceme count=4")
# What has a dial fine enough to come up to the bytes of GPTQ in groups of 64, and what takes fewer.
SAME_BYTES = {
    2: ("watersic rate=2.29", "coded rate=2.29", "gptq bits=2 group=32 symmetric=true scales=6"),
    3: ("watersic rate=3.32", "coded rate=3.32", "gptq bits=3 group=32 symmetric=true scales=6"),
    4: ("watersic rate=4.32", "coded rate=4.32", "gptq bits=4 group=32 symmetric=true scales=6"),
}
HALVES = {
    "bits": {f"{bits} bits": [text.format(bits, 2 * bits) for text in QUANTIZERS] + list(FLOATS) * (bits == 4) for bits in (2, 3, 4)},
    "sparse": {
        "50 % sparse": [text.format("keep=0.5") for text in PRUNERS],
        "2:4 sparse": [
            text.format("pattern=2:4") for text in PRUNERS if "per_row" not in text and text.split()[0] not in ("dsnot", "gblm", "dpruner")
        ],
        "60 % sparse": [text.format("keep=0.4") for text in PRUNERS],
        "70 % sparse": [text.format("keep=0.3") for text in PRUNERS],
        "50 % cut": [*CUTTERS, *SHORTER],
    },
}
# The sparse half takes gradients of sequences too, so it has shorter ones: sequences to calibrate, their tokens, sequences to judge.
WINDOWS = {"bits": (SAMPLES, TOKENS, TEST), "sparse": (64, 128, 64)}
TITLES = {
    "bits": "Methods: all linears of the demo's blocks",
    "sparse": "Methods that prune: all linears of the demo's blocks, layer by layer",
}
HEAD = ("at", "method", "bytes", "bits each", "mean KL [95 %]", "perplexity", "times the best (95 %)")
SHOWN = 8
# Why a row is not best, by how it begins; the longest beginning counts.
BLIND = "no data"
WHY = {
    **dict.fromkeys(("nearest", "hqq", "kmeans", "coded", "float4", "magnitude", "llm-compressor nearest"), BLIND),
    "adaquant": "gradients of rounding from one start, each layer towards what it gave, zero points as they began",
    "gptq": "a code takes as many bits however often it comes, and no zero points where it is symmetric",
    "gptvq": "one codebook for all rows, whose indices take as many bits however often they come",
    "watersic": "fewer bytes, since a rate counts scales and tables too",
    "zeroquant_fp": "levels of E2M1, codes not refined",
    "llm-compressor GPTQ": "each column once, codes not refined",
    "llm-compressor AWQ": "columns scaled, then rounded to the nearest",
    "auto-round": "its light recipe, 50 updates a block",
    "wanda": "masks by the norm of each input alone",
    "llm-compressor Wanda": "masks by the norm of each input alone",
    **dict.fromkeys(("flap", "taylor", "fisher_masks", "slimsam", "bonsai"), "nothing that remains moves, but biases in flap"),
    "liar": "what remains interpolates what went, chosen by energy",
    "blocks": "half of the blocks in place of half of each",
    "replaceme": "half of the blocks in place of half of each",
    "ziplm": "what remains makes up for what went, layer by layer",
    "dsnot": "masks mended for mean outputs alone",
    "gblm": "gradients choose masks alone",
    "dpruner": "gradients choose masks alone",
    "mfac": "what remains moves by 16 gradients, not by all inputs",
    "sparsegpt": "columns make up for earlier ones alone",
    "llm-compressor SparseGPT": "columns make up for earlier ones alone",
}
NOTES = {
    "bits": "Embedding and head stay; groups of 64 where there are groups. Bits each count scales, tables and the file's header. A rate counts them "
    "too, bits in groups do not, so the next table compares at equal bytes. Bytes of a peer are those of the same codes in our container.",
    "sparse": "Share of zeros in each layer; embedding and head stay. Bytes have one bit for each entry that says whether it is there, for a peer of "
    "its own weights. At 50 % cut half of the heads and channels are gone, or of the blocks: files are smaller than at 50 % sparse, since nothing "
    "says where zeros are. llm-compressor's Wanda sees the inputs of a block before any of its layers is pruned, ours those that come.",
}
EQUAL_NOTE = (
    "Rows as above, and options with a finer dial. Four-bit floats take more bytes at any layout but "
    "mxfp4. No loader but ours reads rates and codebooks; grids in groups are read by Transformers and vLLM."
)


@cache
def weights() -> tuple[int, int]:
    """How many weights the linears of the demo's blocks have, and the bytes of all else."""
    whole = sum(tensor.nbytes for tensor in load_file(Path(DEMO) / "model.safetensors").values())
    found = peers.linears(Path(DEMO))
    return sum(weight.numel() for weight in found), whole - sum(weight.nbytes for weight in found)


def measured(text: str) -> dict[str, Any]:
    """Bytes and quality of an option, or of a peer's row."""
    if text not in _known():
        windows = WINDOWS["sparse" if "sparse" in text or any(text in texts for texts in HALVES["sparse"].values()) else "bits"]
        found = peers.measured(text, windows) if _is_peer(text) else _ours(text, windows)
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        KEPT.write_text(json.dumps(_known() | {text: found}))  # another process may have written meanwhile
    return _known()[text]


def _ours(text: str, windows: tuple[int, int, int]) -> dict[str, Any]:
    samples, tokens, tests = windows
    samples = 2 if text.split()[0] in DATALESS and "refit" not in text else samples
    keep = ["model.embed_tokens", "lm_head"]
    receipt = modicum.fit(
        "demo", method=text, target="modicum", samples=samples, tokens=tokens, test_samples=tests, keep=keep, allow_broken=True
    ).receipt  # fmt: skip
    made = sum(site["bytes"] for site in receipt["sites"] if site["option"] != "keep")
    return {"bytes": receipt["bytes"]["actual"], "made_bytes": made, "quality": receipt["quality"]}


def _known() -> dict[str, Any]:
    return json.loads(KEPT.read_text()) if KEPT.exists() else {}


def _is_peer(text: str) -> bool:
    return ", " in text


def rows_at(group: str, texts: Sequence[str], kept: bool) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """What was measured, best first, and what was not."""
    wanted = [*texts, *peers.names(group)]
    ready = lambda text: text in _known() or text.startswith("auto-round") or not (kept or (_is_peer(text) and not peers.available()))
    lacking = [text for text in wanted if not ready(text)]
    found = [(text, measured(text)) for text in wanted if text not in lacking]
    return sorted(found, key=lambda pair: pair[1]["quality"]["mean"]), lacking


def size(text: str, group: str) -> int:
    """Bytes of a whole file with what was made."""
    found = measured(text)
    if "bytes" in found:
        return int(found["bytes"])
    if "made_bytes" in found:  # all but the weights is as in a file of ours
        own = measured(HALVES["sparse"][group][-1])
        return int(own["bytes"] - own["made_bytes"] + found["made_bytes"])
    return int(measured(f"gptq bits={group.split()[0]}" + " symmetric=true" * text.startswith("auto-round"))["bytes"])


def beside(found: dict[str, Any], best: dict[str, Any]) -> str:
    """How often the loss of the best an option has, with the 95 % interval of pairs of sequences, or that it is level."""
    if found == best:
        return "best"
    if "each" not in found["quality"]:  # published by another bench, without its sequences
        return f"{found['quality']['mean'] / best['quality']['mean']:.2f}"
    one, other = np.array(found["quality"]["each"]), np.array(best["quality"]["each"])
    drawn = np.random.default_rng(0).integers(0, len(one), (2000, len(one)))
    low, high = np.quantile(one[drawn].mean(1) / other[drawn].mean(1), (0.025, 0.975))
    inside = found["quality"]["mean"] <= best["quality"]["high"]
    told = f"{one.mean() / other.mean():.2f} ({low:.2f} to {high:.2f})"
    return told + ", inside" * inside


def told(text: str, group: str, best: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a row behind its group."""
    found, whole, (count, others) = measured(text), size(text, group), weights()
    quality = found["quality"]
    return (
        text.removesuffix(f", {group}"), f"{whole}", f"{8 * (whole - others) / count:.2f}",
        interval(quality), f"{quality['perplexity']:.3f}", beside(found, best),
    )  # fmt: skip


def table(half: str, kept: bool) -> None:
    """All methods of a half, at each level the best first."""
    rows, lacking = [], []
    for group, texts in HALVES[half].items():
        found, left = rows_at(group, texts, kept)
        rows += [(group, *told(text, group, found[0][1])) for text, _ in found]
        lacking += left
    show(TITLES[half], HEAD, rows, NOTES[half] + why(rows) + unrun(lacking))


def why(rows: Sequence[tuple[str, ...]]) -> str:
    """What keeps rows from being best, told once for all that share it."""
    shared: dict[str, list[str]] = {}
    for row in rows:
        if row[-1] == "best" or "inside" in row[-1]:
            continue
        begins = max((word for word in WHY if row[1].startswith(word)), key=len)
        name = begins + " refit=0" * ("refit=0" in row[1])
        if name not in shared.setdefault(WHY[begins], []):
            shared[WHY[begins]].append(name)
    return " Why a row is not best: " + "; ".join(f"{', '.join(names)}: {reason}" for reason, names in shared.items()) + "."


def unrun(lacking: Sequence[str]) -> str:
    """What a table lacks."""
    return f" Not run yet: {'; '.join(lacking)}." if lacking else ""


def equal_bytes(kept: bool) -> None:
    """What has at most the bytes of ``gptq`` in groups of 64, at each of its bits."""
    rows, lacking = [], []
    for bits, texts in SAME_BYTES.items():
        group = f"{bits} bits"
        found, left = rows_at(group, [*HALVES["bits"][group], *texts], kept)
        lacking += [text for text in left if text in texts]
        allowed = size(f"gptq bits={bits}", group)
        within = [(text, one) for text, one in found if size(text, group) <= allowed]
        rows += [(f"{allowed} bytes", *told(text, group, within[0][1])) for text, _ in within[:SHOWN]]
    show(
        f"Methods at equal bytes: the {SHOWN} best in at most the file of gptq in groups of 64",
        HEAD,
        rows,
        EQUAL_NOTE + why(rows) + unrun(lacking),
    )


def main(words: Sequence[str] = ()) -> None:
    chosen = [word.removeprefix("row=") for word in words if word.startswith("row=")]
    for text in chosen:
        measured(text)
    for half in [word for word in HALVES if not chosen and (word in words or not set(words) & set(HALVES))]:
        table(half, "kept" in words)
        if half == "bits":
            equal_bytes("kept" in words)


if __name__ == "__main__":
    main(sys.argv[1:])
