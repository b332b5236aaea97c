"""Tasks of lm-evaluation-harness: how its figures are told, and that it is asked for where it is absent. tests/interop runs it."""

import importlib.util

import pytest
from click.testing import CliRunner

import modicum
from modicum.cli.main import main
from modicum.cli.show import task_words
from modicum.core.errors import SettingError
from modicum.receipt.tasks import _rows

MINE = {
    "results": {
        "choice": {"alias": "choice", "acc,none": 0.25, "acc_stderr,none": 0.05, "acc_norm,none": 0.5, "acc_norm_stderr,none": 0.06},
        "words": {"alias": "words", "word_perplexity,none": 12.0, "word_perplexity_stderr,none": "N/A", "exact_match,strict": 1},
    },
    "n-samples": {"choice": {"original": 100, "effective": 75}},
}


def test_each_metric_has_a_row_with_its_error():
    rows = list(_rows(MINE))
    assert [(row["task"], row["metric"], row["value"], row["error"], row["samples"]) for row in rows] == [
        ("choice", "acc", 0.25, 0.05, 75),
        ("choice", "acc_norm", 0.5, 0.06, 75),
        ("words", "word_perplexity", 12.0, None, None),
        ("words", "exact_match (strict)", 1.0, None, None),
    ]
    assert task_words(rows[0]) == "0.2500 ± 0.0500, 75 samples"


def test_the_original_stands_beside():
    theirs = {"results": {**MINE["results"], "choice": {**MINE["results"]["choice"], "acc,none": 0.75, "acc_stderr,none": float("nan")}}}
    row = next(iter(_rows(MINE, theirs)))
    assert (row["original"], row["original_error"]) == (0.75, None)
    assert task_words(row) == "0.7500 → 0.2500 ± 0.0500, 75 samples"


@pytest.fixture
def absent(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else find(name, *rest))


def test_where_it_is_absent_it_is_asked_for_before_any_work(absent):
    with pytest.raises(
        SettingError, match=r"lm-eval: the package lm_eval must be installed, is not. Run: pip install 'modicum\[lm-eval\]'"
    ):
        modicum.evaluate("nowhere", lm_eval="tasks")
    told = CliRunner().invoke(main, ["eval", "demo", "--lm-eval", "tasks"])
    assert told.exit_code == 2
    assert "the package lm_eval must be installed" in told.output
