"""The picture that a run ends with on a terminal: the frontier, and what every part got, in characters."""

import copy
import io
import re

import pytest
from rich.console import Console

from modicum.cli import printing
from modicum.cli.picture import picture


def plain(receipt, width, unicode=True):
    return [line.plain.rstrip() for line in picture(receipt, width, unicode)]


def test_the_frontier_falls_from_left_to_right_and_marks_this_result(chosen):
    lines = plain(chosen, 80)
    chart = [line.partition("│")[2] for line in lines if "│" in line]
    marks = {column: row for row, line in enumerate(chart) for column, mark in enumerate(line) if mark in "•◆·"}
    assert sum(line.count("◆") for line in chart) == 1 and sum(line.count("•") for line in chart) == 4
    assert [marks[column] for column in sorted(marks)] == sorted(marks.values())
    assert any(line.startswith("   0.32 │") for line in lines) and any("7.000 kB" in line and line.endswith("28.000 kB") for line in lines)


def test_every_part_has_a_line_with_its_bits_by_block(chosen):
    lines = plain(chosen, 80)
    assert "attn.q  4  4  4  4" in lines and "mlp.up  4  4  4  4" in lines and any(re.fullmatch(r"embed +=", line) for line in lines)
    assert not any("ffn" in line for line in lines)  # a cut has no bits


@pytest.mark.parametrize("width", [20, 27, 40, 80, 200])
@pytest.mark.parametrize("unicode", [True, False])
def test_it_fits_any_terminal_and_any_encoding(chosen, width, unicode):
    wide = copy.deepcopy(chosen)
    for block in range(4, 60):  # more blocks than a narrow terminal has columns
        wide["frontier"]["sites"][f"model.layers.{block}.mlp.up"] = wide["frontier"]["sites"]["model.layers.0.mlp.up"]
        wide["sites"].append({**wide["sites"][1], "site": f"model.layers.{block}.mlp.up"})
    lines = plain(wide, width, unicode)
    bars = [line for line in lines if line.startswith("mlp.up")]
    assert sum(line.removeprefix("mlp.up").count("4") for line in bars) == 60
    assert max(len(line) for line in bars) <= width
    assert unicode or all(line.isascii() for line in lines)


def test_without_a_frontier_there_are_bars_alone(chosen):
    lines = plain({**chosen, "frontier": {}}, 80)
    assert not any("│" in line for line in lines) and "attn.q  4  4  4  4" in lines
    assert plain({**chosen, "frontier": {}, "sites": [], "coverage": {**chosen["coverage"], "untreated": []}}, 80) == []


@pytest.mark.parametrize("terminal, no_color, coloured", [(True, "", True), (True, "1", False), (False, "", False)])
def test_colours_are_for_terminals_that_want_them(chosen, monkeypatch, terminal, no_color, coloured):
    monkeypatch.setenv("NO_COLOR", no_color) if no_color else monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    written = io.StringIO()
    monkeypatch.setattr(printing, "_console", lambda: Console(file=written, force_terminal=terminal, width=80, highlight=False))
    printing.print_picture(chosen)
    assert bool(re.search(r"\x1b\[[\d;]*(?:3|4)8;", written.getvalue())) == coloured
    assert ("\x1b" in written.getvalue()) <= terminal
