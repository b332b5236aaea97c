"""Several sources of text at once, each with a weight: ``code/=3,letters.txt=1``."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from torch import Tensor

from modicum.core.errors import DataError, quoted
from modicum.data.text import windows


def sources_of(path: str | os.PathLike[str]) -> list[tuple[str, float]]:
    """The sources that a ``--data`` names, and the weight of each.

    One that is there under its whole name, commas and all, is one source. Otherwise commas part several, each with ``=`` and a positive number
    behind it where it is to count otherwise than as 1. Raises ``DataError`` where one is empty or named twice, and for a weight that is none.
    """
    whole = os.fspath(path)
    if Path(whole).exists() or not ("," in whole or "=" in whole):
        return [(whole, 1.0)]
    found: dict[str, float] = {}
    for word in whole.split(","):
        name, divided, told = word.rpartition("=")
        source, weight = (name, _weight(whole, told)) if divided and not Path(word).exists() else (word, 1.0)
        if not source.strip() or source in found:
            why = f"{source} is named twice" if source.strip() else "one name is empty"
            raise DataError(f"data: {quoted(whole)} must name different sources between its commas, {why}. Name each once.")
        found[source] = weight
    return list(found.items())


def _weight(whole: str, told: str) -> float:
    try:
        weight = float(told)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise DataError(
            f"data: {quoted(whole)} must have a positive number behind each =, {quoted(told) if told else 'nothing'} came. Write code/=3."
        )
    return weight


def apportioned(count: int, weights: list[float]) -> list[int]:
    """So many things by weight, in whole numbers: what is left after rounding down goes to the largest remainders, the first of equal ones first."""
    exact = [count * weight / sum(weights) for weight in weights]
    shares = [math.floor(each) for each in exact]
    for place in sorted(range(len(exact)), key=lambda place: shares[place] - exact[place])[: count - sum(shares)]:
        shares[place] += 1
    return shares


def mixed(streams: list[Tensor], weights: list[float], tokens: int, count: int, seed: int) -> tuple[Tensor, list[int]]:
    """``count`` windows of ``tokens`` tokens, of each stream its share, of several in an order that the seed draws; and how many came of each.

    A stream that has fewer gives all of its own, and nobody makes up for them: the mixture is then another than was asked for, which the numbers
    tell.
    """
    shares = apportioned(count, weights)
    parts = [windows(stream, tokens, share, torch.Generator().manual_seed(seed)) for stream, share in zip(streams, shares) if share]
    given = iter(map(len, parts))
    rows = torch.cat(parts)
    if len(streams) > 1:
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    return rows, [next(given) if share else 0 for share in shares]
