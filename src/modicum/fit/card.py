"""The model card beside a result: what the hub reads of it, and what a reader should know, from the receipt and the original's own card."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from modicum.core.budget import readable
from modicum.core.errors import quoted
from modicum.core.files import leads_outside, read_text

FILE = "README.md"
_LONGEST = 1_000_000  # bytes of a card that is read
_FRONT = re.compile(r"\A﻿?---[ \t]*\r?\n(.*?)(?:^---[ \t]*(?:\r?\n|\Z))", re.DOTALL | re.MULTILINE)
# What holds for a compressed model as for its original; all else of a card's head (its metrics, its library) is of the original alone.
_CARRIED = ("license", "license_name", "license_link", "language", "datasets", "pipeline_tag", "tags")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# By target: the library that the hub names, and how a directory is loaded.
_LIBRARIES = {"transformers": "transformers", "vllm": "transformers", "modicum": "modicum", "gguf": "gguf"}
_LOADED = {
    "transformers": 'from transformers import {cls}\n\nmodel = {cls}.from_pretrained("DIR", dtype="auto")',
    "vllm": 'from vllm import LLM\n\nmodel = LLM("DIR")',
    "modicum": 'import modicum\n\nmodel = modicum.load("DIR")',
    "gguf": 'import llama_cpp  # or: llama-cli -m DIR/model.gguf\n\nmodel = llama_cpp.Llama("DIR/model.gguf")',
}
_INTO = 'import modicum\n\nmodel = modicum.load("DIR", into=module)  # a {cls} as it was built for the original'
# What of a verification is no other way to load the files.
_OWN = ("loader", "class")


def card(receipt: Mapping[str, Any], source: Path | None, *, causal: bool, known: bool = True) -> tuple[str, list[str]]:
    """The text of a card, and events: what of the original's card, beside its weights in ``source``, could not be read.

    ``causal``: whether it is a causal language model; ``known``: whether its class is one of Transformers, or else must be brought.
    """
    head, body, events = _of(source)
    yaml_head = yaml.safe_dump(_head(receipt, head, causal), sort_keys=False, allow_unicode=True)
    return f"---\n{yaml_head}---\n\n" + "\n".join(_lines(receipt, head, body, known)), events


def densified(source: Path) -> str:
    """The card of a result in ``source`` written dense: its head without what only holds compressed."""
    head, _, _ = _of(source)
    kept = {key: value for key, value in head.items() if key not in ("model-index", "quantization")}
    kept |= {"library_name": "transformers"}
    kept["tags"] = [tag for tag in head.get("tags", []) if tag != "compressed-tensors"]
    front = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
    said = "The weights of a model that modicum compressed, each the value that the compressed one has. It is for fine-tuning, and saves no bytes."
    return f"---\n{front}---\n\n# A compressed model, dense again\n\n{said}\n"


def _of(source: Path | None) -> tuple[dict[str, Any], str, list[str]]:
    """The head and the body of the original's card."""
    path = source / FILE if source is not None else None
    if source is None or path is None or not path.is_file() or leads_outside(path, source):
        return {}, "", []
    try:
        text = read_text(path, _LONGEST)
        found = _FRONT.match(text)
        head = yaml.safe_load(found[1]) if found else {}
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        return (
            {},
            "",
            [f"card: the original's README.md cannot be read ({quoted(error)}); nothing of it, its licence neither, is in this one."],
        )
    if head is not None and not isinstance(head, dict):
        return {}, text, ["card: the head of the original's README.md is no table; its licence is not in this one."]
    return head or {}, text[found.end() :] if found else text, []


# The head


def _head(receipt: Mapping[str, Any], source: Mapping[str, Any], causal: bool) -> dict[str, Any]:
    target, name = receipt["request"]["target"], receipt["model"]["name"]
    quantized = receipt["verification"].get("loader") and _methods(receipt)
    head: dict[str, Any] = {key: source[key] for key in _CARRIED if source.get(key) is not None}
    if causal:
        head.setdefault("pipeline_tag", "text-generation")
    if _of_hub(name):
        head |= {"base_model": name, "base_model_relation": "quantized"}
    elif source.get("base_model"):
        head["base_model"] = source["base_model"]
    head["library_name"] = _LIBRARIES.get(target, target)
    tags = source.get("tags")
    own = ["modicum", *(["compressed-tensors"] if target in ("transformers", "vllm") and quantized else [])]
    head["tags"] = list(dict.fromkeys([*map(str, tags if isinstance(tags, list) else [tags] if tags else []), *own]))
    head["quantization"] = {"bits_per_weight": round(receipt["bytes"]["bits_per_weight"], 4), "methods": _methods(receipt)}
    return head | ({"model-index": [_metrics(receipt)]} if receipt["quality"] else {})


def _of_hub(name: str) -> bool:
    return _HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def _methods(receipt: Mapping[str, Any]) -> list[str]:
    """Names of the methods in use, the most used first."""
    words = [step.split()[0] for row in receipt["sites"] for step in row["option"].split(" | ") if step not in ("keep", "dropped", "gone")]
    return sorted(set(words), key=lambda word: (-words.count(word), word))


def _metrics(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured, as the hub's list of results has it."""
    quality, data = receipt["quality"], receipt["data"]
    found = [{"type": "divergence", "name": f"{quality['metric']} against the original", "value": quality["mean"]}]
    if "perplexity" in quality:
        found.append({"type": "perplexity", "value": quality["perplexity"]})
    name = "the test text shipped with modicum" if data["source"] == "shipped" else Path(data["source"]).name
    revision = data["hashes"].get("test", "")[:16]
    result = {"task": {"type": "text-generation" if "perplexity" in quality else "other"},
              "dataset": {"name": name, "type": "held-out", **({"revision": revision} if revision else {})}, "metrics": found}  # fmt: skip
    return {"name": _title(receipt), "results": [result]}


# The body


def _title(receipt: Mapping[str, Any]) -> str:
    return f"{Path(receipt['model']['name']).name or 'model'} at {receipt['bytes']['bits_per_weight']:.2f} bits per weight"


def _lines(receipt: Mapping[str, Any], source: Mapping[str, Any], body: str, known: bool) -> Iterator[str]:
    name, sizes, target = receipt["model"]["name"], receipt["bytes"], receipt["request"]["target"]
    shown = f"[{name}](https://huggingface.co/{name})" if _of_hub(name) else f"`{Path(name).name}`"
    yield f"# {_title(receipt)}\n"
    yield f"{shown}, compressed by modicum {receipt['versions']['modicum']} for target {target}: "
    yield f"{readable(sizes['original'])} became {readable(sizes['actual'])}. What was lost: {receipt.get('verdict') or 'not judged'}\n"
    yield from _quality(receipt)
    yield from _changed(receipt)
    yield from _loading(receipt, known)
    yield "What was asked, done, measured and verified, layer by layer, is in `receipt.json`, and as a page in `report.html` where there is one.\n"
    if body.strip():
        left = [str(key) for key in source if key not in (*_CARRIED, "base_model")]
        said = f" Of its head {', '.join(f'`{key}`' for key in left)} are of the original alone and left out." if left else ""
        yield f"## The original's card\n\nWhat follows is about the original, not about this model.{said}\n"
        yield body.strip() + "\n"


def _quality(receipt: Mapping[str, Any]) -> Iterator[str]:
    sizes, quality = receipt["bytes"], receipt["quality"] or {}
    yield "| | original | this model |\n|---|---:|---:|"
    yield f"| bytes of weights | {sizes['original']:,} | {sizes['actual']:,} |"
    if "perplexity_original" in quality:
        yield f"| perplexity | {quality['perplexity_original']:.3f} | {quality['perplexity']:.3f} |"
    if quality:
        yield f"| {quality['metric']} | 0 | {quality['mean']:.5f} ({quality['low']:.5f} to {quality['high']:.5f}) |"
        yield f"\nMeasured on {quality['sequences']} held-out sequences, {quality['tokens']:,} tokens; the interval is one of 95 %."
    yield ""


def _changed(receipt: Mapping[str, Any]) -> Iterator[str]:
    """What is another than in the original."""
    counts: dict[str, list[int]] = {}
    for row in receipt["sites"]:
        if row["option"] != "keep":
            counts.setdefault(row["option"], []).append(row["bytes"])
    yield "## What was changed\n"
    for option, sizes in sorted(counts.items(), key=lambda item: -sum(item[1])):
        yield f"- `{option}` on {len(sizes)} part{'s' if len(sizes) > 1 else ''} of the model, {readable(sum(sizes))}"
    if (healing := receipt.get("healing")) and healing["taken"]:
        yield f"- {healing['trained']:,} numbers ({healing['with']}) were trained in {len(healing['losses'])} updates to answer as the original"
    yield f"- all else is as it was: {receipt['coverage']['share']:.1%} of the bytes of layers were treated\n"


def _loading(receipt: Mapping[str, Any], known: bool) -> Iterator[str]:
    """How it is loaded, and what was found when it was."""
    target, verification = receipt["request"]["target"], receipt["verification"]
    yield "## How it is loaded\n"
    if target in _LOADED:
        how = _LOADED[target] if known else _INTO
        yield f"```python\n{how.format(cls=receipt['model']['class'])}\n```\n"
    logits = verification.get("logits")
    if logits:
        yield f"Loaded by {verification['loader']}, its outputs are those of the dequantized weights (largest {logits['metric']}: "
        yield f"{logits['largest']:.2g}).\n"
    for name, found in verification.items():
        if isinstance(found, Mapping) and "result" in found:
            yield f"- With `{name}`: {outcome(found)}"
        elif isinstance(found, str) and name not in _OWN:
            yield f"- Read by {name}: {found}"
    yield ""


def outcome(found: Mapping[str, Any]) -> str:
    """What another way to load it comes to, in words."""
    largest = f" (largest divergence {found['largest']:.2g})" if "largest" in found else ""
    words = {"the same": "the same model", "wrong": "**a wrong model**, without a word: do not use it", "fails": "does not load"}
    why = f" ({found['why']})" if found.get("why") else ""
    return f"{words.get(found['result'], found['result'])}{largest}{why}"
