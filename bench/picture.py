"""The picture of the README: what llama.cpp loses of the demo in files of its own quantizer, and of ours at their bytes."""

from __future__ import annotations

import json
from pathlib import Path

from bench.common import RESULTS, ROOT

PICTURE = ROOT / "docs" / "peers.svg"
# Readable on light and on dark pages.
GREY, THEIRS, OURS = "#808080", "#c77b30", "#3b82c4"


def draw(out: Path = PICTURE) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot, rcParams
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    rcParams.update({"svg.hashsalt": "modicum", "text.color": GREY, "axes.labelcolor": GREY, "axes.edgecolor": GREY, "font.size": 10})
    rows = json.loads((RESULTS / "mixtures_of_llama_cpp.json").read_text(encoding="utf-8"))["rows"]
    rows = [row for row in rows if row[0] == "demo"]
    figure, axes = pyplot.subplots(figsize=(7.2, 3.6))
    sizes = [int(row[2]) / 1e6 for row in rows]
    for place, label, colour in ((3, "llama.cpp's quantizer, with its importance matrix", THEIRS), (4, "modicum fit --target gguf", OURS)):
        losses = [float(row[place].split()[0]) for row in rows]
        axes.plot(sizes, losses, marker="o", color=colour)
        shown, offset = (3, (-20, 34)) if place == 3 else (0, (-6, -86))  # above its line, and below
        axes.annotate(label, (sizes[shown], losses[shown]), offset, textcoords="offset points", color=colour)
    for row, size in zip(rows, sizes):
        below = row[1] == "Q4_K_S"  # its neighbour is near
        offset = (-30, -11) if below else (5, 3)
        axes.annotate(row[1], (size, float(row[3].split()[0])), offset, textcoords="offset points", color=GREY, fontsize=7)
    axes.set(yscale="log", xlabel="megabytes of the file", ylabel="mean KL to the original, nats per token")
    axes.yaxis.set_major_locator(FixedLocator([0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="both", colors=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(out, transparent=True, metadata={"Date": None})
    pyplot.close(figure)
