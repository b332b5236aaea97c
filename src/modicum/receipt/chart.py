"""The chart of a receipt: bits per weight of every site in call order, so that area is bytes, and below it predicted harm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import escape

from modicum.core.budget import readable

# Reasons of layers that stand in a site all the same, where they are counted.
_WITHIN_SITES = ("kept by request", "kept by plan")
_ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_UNTOUCHED = ("keep", "not treated")
# Above this many bars, the lines between them would be all there is to see.
_MOST_LINES = 300
_MOST_LABELS = 12
# The picture: its width, where panels begin and end, heights of a row of the legend and of the two panels, and what stands between them.
_WIDTH, _LEFT, _RIGHT, _ROW, _HEIGHTS, _GAP = 720, 56, 712, 16, (150, 75), 18
# Colours from few bits to many, evenly along the viridis map.
_MAP = ("440154", "482475", "414487", "355f8d", "2a788e", "21918c", "22a884", "44bf70", "7ad151", "bddf26", "fde725")


@dataclass(frozen=True)
class Scheme:
    """Colours of a chart: ink, the grey of what was left as it was, and the range of the colour map for options by bits."""

    name: str
    ink: str
    paper: str
    grey: str
    colours: tuple[float, float]


SCHEMES = (Scheme("light", "#24292f", "#ffffff", "#b8bec6", (0.1, 0.85)), Scheme("dark", "#d8dee6", "#14171b", "#59616b", (0.3, 0.95)))


@dataclass(frozen=True)
class _Bar:
    """A site in the chart: as wide as its weights, as high as its bits per weight, so that its area is its bytes."""

    option: str
    weights: float
    bytes: float
    harm: float | None

    @property
    def bits(self) -> float:
        return 8 * self.bytes / self.weights


def chart(receipt: Mapping[str, Any], scheme: Scheme) -> str:
    """SVG of bits per weight, and predicted harm where it was measured, over the weights in call order; area is bytes."""
    bars = _bars(receipt)
    colours = _colours(bars, scheme)
    drawn, top = _legend(bars, colours, scheme)
    panels = {"bits per weight": [bar.bits for bar in bars]}
    if any(bar.harm for bar in bars):
        panels["predicted harm"] = [bar.harm or 0.0 for bar in bars]
    for (label, heights), height in zip(panels.items(), _HEIGHTS):
        drawn += _panel(label, bars, heights, (top + _GAP / 2, height), colours, scheme)
        top += height + _GAP
    drawn += _axis(sum(bar.weights for bar in bars) / 1e6, top - _GAP / 2, scheme)
    size = f'viewBox="0 0 {_WIDTH} {top + 34:g}" font-family="sans-serif" font-size="11" fill="{scheme.ink}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n' + "\n".join(drawn) + "\n</svg>"


def _bars(receipt: Mapping[str, Any]) -> list[_Bar]:
    bars = [_Bar(site["option"], site["weights"], site["bytes"], site["harm"]) for site in receipt["sites"] if site["weights"]]
    item = _ITEM_BYTES.get(receipt["model"]["dtype"], 4)
    outside = [row for row in receipt["coverage"]["untreated"] if row["reason"] not in (*_WITHIN_SITES, "vector") and row["bytes"]]
    return bars + [_Bar("not treated", row["bytes"] / item, row["bytes"], None) for row in outside]


def _colours(bars: Sequence[_Bar], scheme: Scheme) -> dict[str, str]:
    """A colour for each option, from few bits to many along one map; what was left as it was is grey, and last."""
    totals: dict[str, list[float]] = {}
    for bar in bars:
        size = totals.setdefault(bar.option, [0.0, 0.0])
        size[0] += bar.bytes
        size[1] += bar.weights
    ordered = sorted(totals, key=lambda option: (option in _UNTOUCHED, totals[option][0] / totals[option][1], option))
    treated = [option for option in ordered if option not in _UNTOUCHED]
    low, high = scheme.colours
    shades = [_shade(low + (high - low) * index / max(len(treated) - 1, 1)) for index in range(len(treated))]
    return dict.fromkeys(ordered, scheme.grey) | dict(zip(treated, shades))


def _shade(place: float) -> str:
    """The colour at a place from 0 to 1 of the map, between its two nearest."""
    share, first = math.modf(place * (len(_MAP) - 1))
    pair = (_MAP[int(first)], _MAP[min(int(first) + 1, len(_MAP) - 1)])
    one, other = (bytes.fromhex(colour) for colour in pair)
    return "#" + bytes(round(a + share * (b - a)) for a, b in zip(one, other)).hex()


def _panel(
    label: str, bars: Sequence[_Bar], heights: Sequence[float], place: tuple[float, float], colours: Mapping[str, str], scheme: Scheme
) -> list[str]:
    """Bars of these heights between the place's top and its height below, and the axis on their left."""
    top, height = place
    most, foot = 1.05 * max(heights, default=0) or 1.0, top + height
    across, up = (_RIGHT - _LEFT) / sum(bar.weights for bar in bars), height / most
    edges = [_LEFT + across * weights for weights in _running(bar.weights for bar in bars)]
    outlines: dict[str, list[str]] = {option: [] for option in colours}
    # One path for each option keeps the page small where sites are thousands.
    for bar, value, (left, right) in zip(bars, heights, pairwise(edges)):
        outlines[bar.option].append(f"M{left:.2f} {foot:g}V{foot - up * value:.2f}H{right:.2f}V{foot:g}Z")
    line = 0.4 if len(bars) <= _MOST_LINES else 0
    drawn = [
        f'<path d="{"".join(found)}" fill="{colours[option]}" stroke="{scheme.paper}" stroke-width="{line}"/>'
        for option, found in outlines.items()
    ]
    ticks = "".join(f"M{_LEFT - 4} {foot - up * value:.2f}H{_LEFT}" for value in _ticks(most))
    drawn.append(f'<path d="M{_LEFT} {top:g}V{foot:g}H{_RIGHT}{ticks}" fill="none" stroke="{scheme.ink}" stroke-width="0.8"/>')
    drawn += [_text(f"{value:.6g}", _LEFT - 7, foot - up * value + 4, "end") for value in _ticks(most)]
    middle = top + height / 2
    return [*drawn, f'<text transform="translate(12 {middle:g}) rotate(-90)" text-anchor="middle">{label}</text>']


def _axis(most: float, foot: float, scheme: Scheme) -> list[str]:
    """Millions of weights below all panels."""
    places = {value: _LEFT + (_RIGHT - _LEFT) * value / most for value in _ticks(most, 9)}
    ticks = "".join(f"M{place:.2f} {foot:g}v4" for place in places.values())
    drawn = [f'<path d="{ticks}" fill="none" stroke="{scheme.ink}" stroke-width="0.8"/>']
    drawn += [_text(f"{value:.6g}", place, foot + 16, "middle") for value, place in places.items()]
    said = "millions of weights in call order, those outside all sites last (above, area is bytes)"
    return [*drawn, _text(said, (_LEFT + _RIGHT) / 2, foot + 32, "middle")]


def _legend(bars: Sequence[_Bar], colours: Mapping[str, str], scheme: Scheme) -> tuple[list[str], float]:
    """What the largest options take, in two columns, and where it ends."""
    sizes = {option: sum(bar.bytes for bar in bars if bar.option == option) for option in colours}
    weights = {option: sum(bar.weights for bar in bars if bar.option == option) for option in colours}
    largest = sorted(colours, key=lambda option: -sizes[option])[:_MOST_LABELS]
    shown, drawn = [option for option in colours if option in largest], []
    rows = (len(shown) + 1) // 2
    for index, option in enumerate(shown):
        left, foot = (8, 368)[index // rows], _ROW * (index % rows + 1)
        drawn.append(f'<rect x="{left}" y="{foot - 9}" width="20" height="9" fill="{colours[option]}"/>')
        drawn.append(_text(f"{readable(sizes[option])}  {option} ({8 * sizes[option] / weights[option]:.2f} bits)", left + 26, foot))
    return drawn, float(_ROW * rows)


def _text(said: str, x: float, y: float, anchor: str = "start") -> str:
    return f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}">{escape(said)}</text>'


def _ticks(most: float, count: int = 5) -> list[float]:
    """Round numbers from zero to ``most``, about as many as ``count`` and no more than one above."""
    rough = most / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough * (1 - 1e-9))
    return [index * step for index in range(int(most / step * (1 + 1e-9)) + 1)]


def _running(values: Iterator[float]) -> Iterator[float]:
    """Sums of what came before, from zero."""
    total = 0.0
    yield total
    for value in values:
        total += value
        yield total
