"""How far options are from the best that codes of any kind can do: bits that the Gaussian reference takes for the same error, on the same inputs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import torch

from modicum.core.unit import Stats, Unit
from modicum.numerics.threads import single_threaded, total
from modicum.numerics.waterfill import least_bits
from modicum.table.findings import Finding
from modicum.table.harm import output_error, second_moment

# Widest square whose eigenvalues are taken: one takes some thirty times as long as its Cholesky factor.
_WIDEST = 2048


def least_of(unit: Unit, error: torch.Tensor, stats: Stats, weight: torch.Tensor) -> float | None:
    """Bits per weight that a Gaussian ``weight`` (rows, columns) takes at the least for this weight ``error`` under the inputs seen.

    None where no second moment of inputs was measured whole, or one too wide; and for an error of nothing.
    """
    spectrum = _spectrum(stats)
    squares = None if spectrum is None else output_error(error, stats, None)
    if spectrum is None or squares is None or not math.isfinite(lost := total(squares)) or lost <= 0:
        return None
    return least_bits(spectrum, weight.square().mean(1), lost)


def _spectrum(stats: Stats) -> torch.Tensor | None:
    """Eigenvalues (columns,) of the inputs' mean second moment, once for a stage."""
    found = second_moment(stats)
    if found is None:
        return None
    if "spectrum" not in stats.cache:
        told = isinstance(found.summed, torch.Tensor) and len(found.summed) <= _WIDEST
        with single_threaded():
            values = torch.linalg.eigvalsh(found.summed.double() / found.count) if told else None  # type: ignore[union-attr]
        stats.cache["spectrum"] = None if values is None else values + found.beside / found.count
    return stats.cache["spectrum"]


def beyond(found: Mapping[str, Mapping[str, Finding]], units: Sequence[Unit], text: str) -> float | None:
    """Bits per weight that an option takes on some units beyond the reference; None where one does not tell."""
    told = [(unit.size, found.get(unit.name, {}).get(text)) for unit in units]
    parts = [size * (one.bits - one.least) for size, one in told if one is not None and one.bits is not None and one.least is not None]
    return sum(parts) / sum(unit.size for unit in units) if parts and len(parts) == len(units) else None


def wasted(units: Mapping[str, Mapping[str, Finding]]) -> dict[str, dict[str, float]]:
    """By option: how many weights tell, the median of the bits per weight they take, and of those beyond the reference's."""
    by_option: dict[str, list[tuple[float, float]]] = {}
    for found in units.values():
        for text, one in found.items():
            if one.bits is not None and one.least is not None:
                by_option.setdefault(text, []).append((one.bits, one.bits - one.least))
    middle = lambda pairs, place: statistics.median(pair[place] for pair in pairs)
    return {text: {"weights": len(pairs), "bits": middle(pairs, 0), "wasted": middle(pairs, 1)} for text, pairs in by_option.items()}
