"""Pictures as SVG: for light and dark paper alike, the same text for the same figure, and sizes along an axis."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from modicum.core.budget import readable

# Colours on light paper, and what takes their place on dark paper.
INK, SOFT, GRID = "#24292f", "#5b646e", "#e3e7ec"
TARGETS = ("#0a58b8", "#b1440c", "#0b6e4f", "#7a3ea8")
DARK = dict(zip((INK, SOFT, GRID, *TARGETS), ("#d8dee6", "#98a2ad", "#2a3037", "#79b4ff", "#ffa366", "#5fd0a5", "#cf9bff")))
# Where a size axis has its marks, by the decades it spans.
_MARKS = ((0.7, (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)), (1.3, (1, 1.5, 2, 3, 5, 7)), (2.5, (1, 2, 5)), (math.inf, (1,)))


@contextmanager
def settings(salt: str) -> Iterator[None]:
    """Inside, figures are drawn with text as text, and names that ``salt`` tells from those of others on their page."""
    with matplotlib.rc_context(
        {"svg.hashsalt": f"modicum-{salt}", "svg.fonttype": "none", "text.parse_math": False, "axes.unicode_minus": False}
    ):
        yield


def svg(figure: Figure, name: str) -> str:
    """The figure as an SVG that follows the reader's light or dark scheme; the same figure gives the same text."""
    figure.set_gid(f"modicum-{name}")
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    # By no ancestor: a marker is drawn by reference, in a tree of its own.
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    swaps = "".join(
        f'[style*="{part}: {light}"] {{ {part}: {dark} !important }}\n' for light, dark in DARK.items() for part in ("fill", "stroke")
    )
    head, opening, rest = buffer.getvalue().partition("<defs>")
    return f"{head}<style>@media (prefers-color-scheme: dark) {{\n{swaps}}}</style>\n {opening}{rest}"


def inline(drawn: str) -> str:
    """An SVG as it may stand inside a page."""
    return drawn[drawn.index("<svg") :]


def mark(axis: Any, limits: tuple[float, float], written: Any) -> None:
    """Give an axis of logarithms marks that suit how far it reaches."""
    decades = math.log10(limits[1] / limits[0])
    marks = next(found for most, found in _MARKS if decades <= most)
    axis.set_major_locator(LogLocator(subs=marks, numticks=99))
    axis.set_major_formatter(FuncFormatter(lambda value, _: written(value)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(LogLocator(subs=(), numticks=99))


def rounded(value: float) -> str:
    """A round size without needless digits."""
    number, unit = readable(round(value)).split()
    return f"{float(number):g} {unit}"
