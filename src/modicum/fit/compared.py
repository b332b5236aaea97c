"""Results of one original side by side, by their receipts: sizes, choices, quality and whether it differs, settings and versions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from modicum.core.errors import SettingError
from modicum.fit.receipts import FILE, as_written, read_receipt
from modicum.measure import meta

# What stands for a layer that a result has no choice of.
NONE = "-"
# Layers that stand in a site all the same, where they are counted.
_WITHIN_SITES = ("kept by request", "kept by plan")
# A normal interval of 95 % is so many standard errors to each side.
_ERRORS = 1.96


def compare(directories: Sequence[str | Path]) -> dict[str, Any]:
    """What two or more results have in common and what differs, as a JSON value; differences in quality are from the first.

    Raises ``SettingError`` for fewer than two folders, for one that ``fit`` did not write, and for results of different originals.
    """
    if len(directories) < 2:
        raise SettingError(f"compare: at least two folders that fit wrote must be given, got {len(directories)}. Name another.")
    return side_by_side([Path(directory) for directory in directories])


def side_by_side(places: Sequence[Path]) -> dict[str, Any]:
    """As ``compare``, of one folder too."""
    receipts = [receipt_in(place) for place in places]
    with as_written():
        _require_alike(places, receipts)
        return _compared([str(place) for place in places], receipts)


def receipt_in(place: Path) -> dict[str, Any]:
    """The receipt in a folder. Raises ``SettingError`` where ``fit`` did not write it."""
    if not place.is_dir():
        raise SettingError(f"{place}: must be a folder that fit wrote, is none. Check the path.")
    if not (place / FILE).exists():
        what = "is one that measure wrote" if (place / meta.FILE).exists() else "holds no receipt.json"
        raise SettingError(f"{place}: must be a folder that fit wrote, {what}. Name a folder that fit wrote.")
    return read_receipt(place / FILE)


def _require_alike(places: Sequence[Path], receipts: Sequence[Mapping[str, Any]]) -> None:
    for place, receipt in zip(places[1:], receipts[1:]):
        if _original(receipt) != _original(receipts[0]):
            names = [found["model"]["name"] for found in (receipts[0], receipt)]
            raise SettingError(
                f"compare: all results must be of one original, {places[0]} is of {names[0]} and {place} of {names[1]}"
                f"{' with other weights' if names[0] == names[1] else ''}. Compare results of the same model."
            )


def _original(receipt: Mapping[str, Any]) -> Any:
    """What tells an original from others: what is in its files, or the values of a module; copies of a checkpoint are one."""
    model = receipt["model"]
    return sorted(model.get("files", {}).values()) or model["hash"]


def _compared(names: Sequence[str], receipts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = receipts[0]
    return {
        "original": {key: first["model"][key] for key in ("name", "class", "parameters", "dtype")} | {"bytes": first["bytes"]["original"]},
        "results": [_result(name, receipt) for name, receipt in zip(names, receipts)],
        "quality": [{"result": name, **difference(first, other)} for name, other in zip(names[1:], receipts[1:])],
        "sites": [{"site": site, "options": options} for site, options in _sites(receipts)],
        "settings": _differing([_settings(receipt) for receipt in receipts]),
        "versions": _differing([receipt["versions"] for receipt in receipts]),
    }


def _result(name: str, receipt: Mapping[str, Any]) -> dict[str, Any]:
    sizes = receipt["bytes"]
    return {
        "directory": name, "target": receipt["request"]["target"], "budget": receipt["request"]["budget"],
        "bytes": sizes["actual"], "bits_per_weight": sizes["bits_per_weight"], "values": receipt.get("values", {}).get("actual"),
        "macs": receipt.get("macs", {}).get("actual"),
        "treated": receipt["coverage"]["share"], "quality": receipt["quality"], "kinds": _kinds(receipt), "events": len(receipt["events"]),
    }  # fmt: skip


def _kinds(receipt: Mapping[str, Any]) -> dict[str, int]:
    """Bytes by kind: of methods with their bits, of what is as it was, and the rest of the files, such as names of tensors."""
    found: Counter[str] = Counter()
    for row in receipt["sites"]:
        found[_kind(row["option"])] += row["bytes"]
    for row in receipt["coverage"]["untreated"]:
        if row["reason"] not in _WITHIN_SITES:
            found["keep"] += row["bytes"]
    rest = receipt["bytes"]["actual"] - found.total()
    return {kind: size for kind, size in (*found.most_common(), ("rest", rest)) if size}


def _kind(option: str) -> str:
    """An option without its settings but bits."""
    words = lambda step: (word for word in step.split() if "=" not in word or word.startswith("bits="))
    return " | ".join(" ".join(words(step)) for step in option.split(" | "))


def _sites(receipts: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Layers on which the choices differ, in call order, with each result's option."""
    chosen = [_chosen(receipt) for receipt in receipts]
    for name in dict.fromkeys(name for found in chosen for name in found):
        options = [found.get(name, NONE) for found in chosen]
        if len(set(options)) > 1:
            yield name, options


def _chosen(receipt: Mapping[str, Any]) -> dict[str, str]:
    """The option of every layer; those that a target leaves as they are are kept."""
    kept = {name: "keep" for row in receipt["coverage"]["untreated"] if row["reason"] != "vector" for name in _layers(row["unit"])}
    found = {name: row["option"] for row in receipt["sites"] for name in _layers(row["site"])}
    return found | {name: option for name, option in kept.items() if name not in found}


def _layers(site: str) -> list[str]:
    """Layers of a site: targets bind different ones together, and each has its own choice elsewhere."""
    fused = re.fullmatch(r"(.*)\.\[(.*)\]", site)
    return [f"{fused[1]}.{tail}" for tail in fused[2].split(",")] if fused else [site.removesuffix(".weight")]


def _settings(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for; of the sequences only whether they are the same."""
    data, compute = receipt["data"], receipt.get("compute", {})
    told = {"seed": receipt["seed"], "data": data["source"], **{f"{part} sequences": hash[:8] for part, hash in data["hashes"].items()}}
    return {**receipt["request"], **told, **{f"compute {key}": compute[key] for key in ("asked", "forward", "gradients") if key in compute}}


def _differing(found: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Values that are not the same in all."""
    values = {name: [each.get(name) for each in found] for name in dict.fromkeys(name for each in found for name in each)}
    return {name: each for name, each in values.items() if any(value != each[0] for value in each)}


def difference(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """How much more the other loses than the first, with an interval of 95 %: of pairs where both were judged on the same sequences and say what
    each lost; else of two means.
    """
    one, two = first["quality"], other["quality"]
    if not one or not two:
        return {"why": "one of them was not judged"}
    if one["metric"] != two["metric"]:
        return {"why": f"one is judged by {one['metric']}, the other by {two['metric']}"}
    alike = first["data"]["hashes"].get("test", 0) == other["data"]["hashes"].get("test", 1)
    paired = alike and "each" in one and len(one["each"]) == len(two.get("each", ())) > 0
    low, high = _pairs(one["each"], two["each"]) if paired else _means(one, two)
    return {
        "metric": one["metric"], "difference": two["mean"] - one["mean"], "low": low, "high": high, "paired": paired,
        "same_sequences": alike, "differs": not low <= 0 <= high,
    }  # fmt: skip


def _pairs(one: Sequence[float], two: Sequence[float]) -> tuple[float, float]:
    """The bootstrap interval of the mean difference over sequences."""
    from modicum.numerics.interval import interval

    _, low, high = interval([right - left for left, right in zip(one, two)])
    return low, high


def _means(one: Mapping[str, Any], two: Mapping[str, Any]) -> tuple[float, float]:
    """An interval of the difference of two means that are told with theirs."""
    spread = _ERRORS * sum(((quality["high"] - quality["low"]) / (2 * _ERRORS)) ** 2 for quality in (one, two)) ** 0.5
    middle = two["mean"] - one["mean"]
    return middle - spread, middle + spread
